//! Doorbells of devices that have fallen idle: whoever stores to one, and however it came to be mapped, is answered, long before
//! such a device would look by itself; and the program sees nothing of how that is brought about.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The client, in a folder that every user reaches, removed at the end.
struct Client(PathBuf);

impl Drop for Client {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Client {
    fn new(test: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = format!("ioasis-doorbells-{test}-{}", std::process::id());
        let client = Self(std::env::temp_dir().join(path));
        std::fs::create_dir_all(&client.0).expect("a folder");
        std::fs::set_permissions(&client.0, PermissionsExt::from_mode(0o755)).expect("its owner");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/doorbells.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"]);
        let built = gcc.arg(client.path("doorbells")).arg(source).status();
        assert!(built.expect("gcc is installed").success(), "doorbells.c does not compile");
        client
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// A user of a run.
#[derive(Clone, Copy)]
enum User {
    This,
    /// This one, or nobody where this is root.
    Plain,
}

fn run(client: &Client, user: User, options: &[&str], how: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_ioasis");
    let mut run = match user {
        User::Plain if rustix::process::geteuid().is_root() => {
            let mut run = Command::new("setpriv");
            run.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
            run.arg(program);
            run
        }
        _ => Command::new(program),
    };
    run.args(["run", "--device", "testdev"]).args(options).arg("--");
    run.arg(client.path("doorbells")).args(how);
    run.current_dir("/").output().expect("ioasis starts")
}

/// Runs `doorbells HOW` to its end as either user, in a run that says nothing.
fn passes(how: &[&str]) {
    let client = Client::new(how[0]);
    for user in [User::This, User::Plain] {
        is_ok(&run(&client, user, &[], how));
    }
}

fn is_ok(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let silent = output.stderr.is_empty();
    assert!(output.status.success() && text == "ok\n" && silent, "{output:?}");
}

#[test]
fn a_store_at_any_moment_of_a_devices_falling_idle_is_answered() {
    let count = std::env::var("IOASIS_SEQUENCES").unwrap_or_else(|_| "200".to_owned());
    let seed = std::env::var("IOASIS_SEED").unwrap_or_else(|_| "1".to_owned());
    passes(&["race", &seed, &count]);
}

#[test]
fn threads_that_store_one_after_the_other_are_answered() {
    passes(&["threads"]);
}

#[test]
fn what_a_program_forks_is_answered_and_so_is_the_program_meanwhile_and_afterwards() {
    passes(&["forks"]);
}

#[test]
fn a_program_that_has_others_executed_or_fails_to_is_answered() {
    passes(&["executes"]);
}

#[test]
fn a_mapping_that_was_moved_protected_or_given_other_pages_rings_as_before() {
    passes(&["moves"]);
}

#[test]
fn each_of_several_mappings_rings_whatever_becomes_of_the_others() {
    passes(&["several"]);
}

#[test]
fn a_second_program_that_was_given_the_device_is_answered() {
    passes(&["secondary"]);
}

#[test]
fn a_program_that_is_stopped_at_any_moment_maps_and_stores_as_without_that() {
    passes(&["stopped"]);
}

#[test]
fn a_program_that_is_killed_at_any_moment_holds_nobody_up() {
    passes(&["killed"]);
}

#[test]
fn mapping_takes_no_descriptor_that_another_thread_could_be_given_and_leaves_no_thread() {
    passes(&["descriptors"]);
}

#[test]
fn stores_by_the_kernel_are_refused_or_answered() {
    passes(&["kernel"]);
}

#[test]
fn a_program_that_is_traced_by_another_is_answered() {
    passes(&["traced"]);
    assert_eq!(told(&["traced"]), 1);
}

/// How often a run's trace says that doorbells are polled.
fn told(how: &[&str]) -> usize {
    let client = Client::new(how[0]);
    let trace = client.path("trace");
    is_ok(&run(&client, User::This, &[&format!("--trace={}", trace.display())], how));
    let text = std::fs::read_to_string(trace).expect("a trace");
    text.lines().filter(|line| line.contains("found by polling")).count()
}

#[test]
fn where_stores_are_not_trapped_doorbells_are_looked_for_as_well() {
    let client = Client::new("polled");
    for how in ["forks", "moves", "several"] {
        is_ok(&run(&client, User::This, &["--trap-stores=off"], &[how]));
    }
}

#[test]
fn a_program_with_a_filter_of_its_own_makes_no_calls_that_it_did_not_ask_for() {
    assert_eq!(told(&["filtered"]), 1);
}
