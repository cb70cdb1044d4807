//! Device models of one's own: the projects that `ioasis new` writes, and the tutorial about them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// A folder of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("ioasis-models-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ioasis(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ioasis")).args(words).output().expect("it starts")
}

fn said(output: &Output) -> (Option<i32>, String) {
    let words = if output.status.success() { &output.stdout } else { &output.stderr };
    (output.status.code(), String::from_utf8_lossy(words).into_owned())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn a_new_project_is_the_example_under_its_own_name() {
    let folder = Folder::new("new");
    let (project, checkout) = (folder.path("my-device"), root());
    let checkout = checkout.to_str().expect("UTF-8");
    let expected = format!(
        "cd {project}\ncargo test\ncargo run -- run --device my-device -- python3 driver.py\n"
    );
    assert_eq!(said(&ioasis(&["new", &project, "--path", checkout])), (Some(0), expected));
    let example = root().join("examples/ringsum");
    for file in ["src/main.rs", "src/model.rs", "src/model/tests.rs", "tests/run.rs", "driver.py"] {
        let written = fs::read_to_string(Path::new(&project).join(file)).expect(file);
        let ours = fs::read_to_string(example.join(file)).expect(file);
        assert_eq!(written, ours.replace("ringsum", "my-device"), "{file}");
    }
    let manifest = fs::read_to_string(Path::new(&project).join("Cargo.toml")).expect("one");
    assert!(manifest.contains("name = \"my-device\""), "{manifest}");
    let package = root().join("crates/ioasis").canonicalize().expect("there");
    let line = format!("ioasis = {{ path = \"{}\" }}", package.display());
    assert!(manifest.lines().any(|found| found == line), "{manifest}");
}

#[test]
fn a_new_project_never_takes_a_folder_that_is_there_or_a_name_that_is_taken() {
    let folder = Folder::new("refused");
    let taken = folder.path("taken");
    fs::create_dir(&taken).expect("a folder");
    for (name, why) in [
        ("taken", "cannot be made a new folder: File exists (os error 17)"),
        ("nvme", "nvme is a device model of ioasis already; choose another name"),
        (
            "My Device",
            "a name of a device is lowercase letters, digits, - and _, and begins with a letter",
        ),
        ("none/below", "cannot be made a new folder: No such file or directory (os error 2)"),
    ] {
        let (status, words) = said(&ioasis(&["new", &folder.path(name)]));
        assert!(status == Some(125) && words.ends_with(&format!("{why}\n")), "{name}: {words}");
    }
    let (status, words) = said(&ioasis(&["new", &folder.path("x"), "--path", "/nonexistent"]));
    assert!(status == Some(125) && words.contains("--path /nonexistent: No such"), "{words}");
    assert_eq!(fs::read_dir(&taken).expect("still there").count(), 0);
    assert!(!Path::new(&folder.path("x")).exists());
}

#[test]
fn a_new_device_in_python_is_driven_in_a_run() {
    let folder = Folder::new("new-python");
    let project = folder.path("adder");
    let (status, words) = said(&ioasis(&["new", &project, "--python"]));
    let expected = format!(
        "cd {project}\npython3 adder.py adder.sock & sleep 1\nioasis run --device vfio-user,socket=adder.sock -- python3 driver.py\n"
    );
    assert_eq!((status, words), (Some(0), expected));
    let socket = Path::new(&project).join("adder.sock");
    let mut python = Command::new("python3");
    let mut server =
        python.args(["adder.py", "adder.sock"]).current_dir(&project).spawn().expect("python3");
    while !socket.exists() {
        assert!(server.try_wait().expect("a child").is_none(), "it ended at once");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.args(["run", "--root", "--timeout=60s", "--device", "vfio-user,socket=adder.sock", "--"]);
    let output = run.args(["python3", "driver.py"]).current_dir(&project).output();
    let ended = said(&output.expect("it starts"));
    assert_eq!(ended, (Some(0), "12 sums are right, 12 interrupts\n".to_owned()));
    assert!(server.wait().expect("a child").success(), "it ends with its client");
}

/// Lines without their indentation: a piece of a function begins at the left in a document.
fn flat(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_piece_of_code_of_the_tutorial_is_a_piece_of_an_example() {
    let mut files = String::new();
    for file in [
        "ringsum/src/main.rs",
        "ringsum/src/model.rs",
        "ringsum/src/model/tests.rs",
        "ringsum-python/ringsum.py",
        "edu/src/model.rs",
    ] {
        files += &flat(&fs::read_to_string(root().join("examples").join(file)).expect(file));
    }
    let text = fs::read_to_string(root().join("docs/models.md")).expect("the tutorial");
    let blocks = text.split("```").skip(1).step_by(2);
    let code = blocks.filter_map(|block| {
        block.strip_prefix("rust\n").or_else(|| block.strip_prefix("python\n"))
    });
    let mut count = 0;
    for block in code {
        assert!(files.contains(flat(block).trim()), "no example has this:\n{block}");
        count += 1;
    }
    assert!(count > 8, "{count} pieces");
}
