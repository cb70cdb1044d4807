//! The command line.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use ioasis_pci::{ModelInfo, Models};

use ioasis_iommufd::Linux;
use ioasis_supervisor::Machine;
use ioasis_supervisor::trace::{Filter, Format, Stamp, Trace};
use ioasis_supervisor::view::{self, FaultInjection, HostPci, Stores, User};
use ioasis_supervisor::{Explain, Ledger, Leftovers, OnFaults, Rule, RunOptions, control, doctor};

use crate::entry::meant;
use crate::hardware::{self, MockHardware};
use crate::looking::{self, Ctl, Inspect, Ps, Top};
use crate::machine::{self, Description};
use crate::man;
use crate::serve::{self, Serve};
use crate::template::{self, New};
use crate::torture::{self, Torture};

/// Exit status when the client could not be started; the shells' 127 stays the client's own.
pub(crate) const FAILED_TO_START: u8 = 125;

/// Run programs on a machine with an IOMMU, VFIO and PCI devices that are not there.
#[derive(Debug, Parser)]
#[command(name = "ioasis", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run CMD with the devices asked for
    Run(Run),
    /// Run CMD as `run` does and trace it: `run --trace` with strace's options
    Trace(TraceRun),
    /// Serve a device to clients of the vfio-user protocol, QEMU among them, until SIGTERM or SIGINT
    Serve(Serve),
    /// Run CMD again and again, each time with another call failing, and report what crashed, hung or was wrong
    Torture(TortureRun),
    /// List your runs that go on
    Ps(Ps),
    /// Look into a run that goes on: address spaces, page tables, devices, groups, interrupts, charges, queues, or how an address is
    /// translated
    Inspect(Inspect),
    /// Show what a run does, again each second: calls, transfers, bytes and interrupts; ends with q
    Top(Top),
    /// Do something to a device of a run that goes on: surprise-remove, aer (its error interrupt), device-remove
    Ctl(Ctl),
    /// List the device models and their options
    Models {
        /// Of this model alone
        name: Option<String>,
    },
    /// Write a project with a device model of one's own into a new folder; docs/models.md is its tutorial
    New(New),
    /// Say what works on this host, what does not, and how to mend it; the exit status is 1 if no run works
    Doctor {
        /// As JSON: a list of objects with name, status (ok, limited, missing), detail and mend
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell to complete in
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder, which must exist
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
struct TraceRun {
    /// Write to FILE in place of standard error; json:FILE is a JSON object a line
    #[arg(short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Show only these classes and calls, joined by commas, or all but these with ! before the first. Classes are map, irq, config, reset,
    /// fault, event, open and failed; calls are openat, pread, pwrite, mmap, ioctl and requests as VFIO_IOMMU_MAP_DMA
    #[arg(short = 'e', value_name = "CALL,..", value_parser = Filter::parse)]
    expression: Option<Filter>,

    /// Begin each line with the time of day, UTC; twice: in microseconds
    #[arg(short = 't', action = clap::ArgAction::Count)]
    time: u8,

    /// Begin each line with the time since the line before
    #[arg(short = 'r', conflicts_with = "time")]
    relative: bool,

    /// Show a table at the end in place of lines: how often each call was made, and refused
    #[arg(short = 'c')]
    count: bool,

    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Args)]
struct TortureRun {
    #[command(flatten)]
    torture: Torture,

    #[command(flatten)]
    run: Run,
}

/// Who this program is.
#[derive(Debug)]
pub(crate) struct Program {
    /// What command lines call it.
    pub(crate) name: &'static str,
    pub(crate) models: Models,
}

impl Program {
    /// The command line it takes. Shells complete names of models from it.
    fn command(&self) -> clap::Command {
        let names: Vec<_> = self.models.list().iter().map(|model| model.name).collect();
        let of = |argument: &'static str| {
            let parser = ModelParser(names.clone());
            move |command: clap::Command| {
                command.mut_arg(argument, |argument| {
                    argument.value_parser(parser).hide_possible_values(true)
                })
            }
        };
        let mut command = Arguments::command().name(self.name);
        for runs in ["run", "trace", "torture"] {
            command = command.mut_subcommand(runs, of("devices"));
        }
        command.mut_subcommand("serve", of("device")).mut_subcommand("models", of("name"))
    }

    /// What `given`, the words of a command line, ask for.
    pub(crate) fn parse(&self, given: Vec<OsString>) -> Result<Arguments, clap::Error> {
        Arguments::from_arg_matches(&self.command().try_get_matches_from(given)?)
    }
}

/// Takes any text, which the machine's description looks at, and knows how it may begin.
#[derive(Clone, Debug)]
struct ModelParser(Vec<&'static str>);

impl TypedValueParser for ModelParser {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        clap::builder::StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(PossibleValue::new)))
    }
}

/// How a trace looks.
#[derive(Debug, Default)]
struct Look {
    shown: Filter,
    stamp: Stamp,
    count: bool,
}

#[derive(Debug, Args)]
struct Run {
    /// Add a device: a model and its options, e.g. nvme,image=disk.img; `ioasis models` lists them.
    /// Every model takes address=0000:01:00.0, group=N, iommu=N (or none, or emulated), pasid_bits=N, ats and pri; a comma in
    /// a value is written twice
    #[arg(long = "device", value_name = "MODEL[,key=value]...")]
    devices: Vec<String>,

    /// Add an IOMMU, e.g. kind=amd,dirty=off; kinds are vtd, amd, smmuv3, riscv and spapr. docs/machine.md has the other keys.
    /// Without any, the machine has one of kind vtd; devices are behind the first unless they have iommu=N, counted from 0
    #[arg(long = "iommu", value_name = "key=value[,key=value]...")]
    iommus: Vec<String>,

    /// Take IOMMUs and devices from a machine file
    #[arg(long, value_name = "FILE.toml")]
    machine: Option<PathBuf>,

    /// Which Linux's rules hold where they differ: 7.2 or 7.3 (default). docs/uapi.md lists them
    #[arg(long, value_name = "VERSION", value_parser = linux)]
    linux: Option<Linux>,

    /// Who answers /dev/vfio/vfio: the type1 driver, iommufd's compatibility layer, or nobody
    #[arg(long, value_enum, value_name = "WHO", default_value_t)]
    container: ContainerNode,

    /// Print every VFIO and IOMMUFD call with its result and, on error, the reason in words; json:FILE has a JSON object a line
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    trace: Option<Option<PathBuf>>,

    /// Have a call fail or wait: call=VFIO_IOMMU_MAP_DMA,errno=ENOMEM,nth=3. The call is openat or a request; errno=, delay=100ms or both;
    /// nth=3 is the third alone, nth=3+ all from it, without it all; probability=0.1,seed=7; after=2s
    #[arg(long = "inject", value_name = "call=NAME,..", value_parser = rule)]
    rules: Vec<String>,

    /// At the end, say in at most ten lines what went wrong, worst first, and what to do about it
    #[arg(long)]
    explain: bool,

    /// Exit with 121 if a device could not reach memory or send an interrupt and CMD ended with 0 all the same
    #[arg(long)]
    fail_on_fault: bool,

    /// Print who pinned how much memory under which limit: at the end, and when this process gets SIGUSR1
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    ledger: Option<Option<PathBuf>>,

    /// End what CMD left behind when CMD ends, instead of waiting for it; and CMD, when this process is killed
    #[arg(long)]
    kill_on_exit: bool,

    /// End the run after this time, e.g. 90s, 5m, 1h: its processes get SIGTERM, five seconds later SIGKILL, and the exit status is 124
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,

    /// What `ioasis ps`, inspect and ctl call the run, in place of this process's number
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Show the host's own PCI devices beside the simulated ones
    #[arg(long)]
    host_devices: bool,

    /// Have the mock hardware of Linux's own IOMMUFD tests (IOMMU_TEST_CMD), and fault injection for CMD's own calls
    #[arg(long)]
    mock: bool,

    /// Whether each store to mapped registers acts before the next, at the price of a tracer in programs that map them: gdb
    /// and strace exclude each other with that. docs/traps.md
    #[arg(
        long,
        value_name = "on|off",
        value_enum,
        default_value_t = Switch::On,
        default_missing_value = "on",
        num_args = 0..=1,
        require_equals = true
    )]
    trap_stores: Switch,

    /// Have CMD be root with every capability, in a user namespace unless it is that already: the machine asks for
    /// capabilities where Linux does, and this host may withhold them. On the host CMD may do no more than before
    #[arg(long)]
    root: bool,

    /// The program to run and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Whether something is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// It is
    On,
    /// It is not
    Off,
}

/// `--container`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ContainerNode {
    /// The type1 driver
    #[default]
    Type1,
    /// Iommufd, by the rules of Linux's compatibility layer
    Iommufd,
    /// Nobody: there is no such file
    None,
}

impl From<ContainerNode> for view::ContainerNode {
    fn from(node: ContainerNode) -> Self {
        match node {
            ContainerNode::Type1 => Self::Type1,
            ContainerNode::Iommufd => Self::Iommufd,
            ContainerNode::None => Self::Absent,
        }
    }
}

/// A time as `timeout(1)` takes it: a number of seconds, or one with ms, s, m or h behind it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a unit is ms, s, m or h, as in 90s".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a time is a number and a unit, as 90s")?;
    let time = number.checked_mul(milliseconds).filter(|&time| time != 0);
    time.map(Duration::from_millis)
        .ok_or("a time is more than 0, and less than 584 million years".to_owned())
}

/// A Linux whose rules there are.
fn linux(text: &str) -> Result<Linux, String> {
    machine::linux(text).map_err(|error| error.to_string())
}

/// A rule that can be parsed.
fn rule(text: &str) -> Result<String, String> {
    Rule::parse(text).map(|_| text.to_owned())
}

/// Why `arguments` are not what was meant, where a file's name follows an option that takes it behind `=` only.
pub(crate) fn misplaced(arguments: &[OsString]) -> Option<String> {
    let before = arguments.split(|argument| argument == "--").next()?;
    if before.len() == arguments.len() {
        return None;
    }
    let pair = before.windows(2).find(|pair| {
        ["--trace", "--ledger"].iter().any(|option| pair[0] == *option)
            && !pair[1].to_string_lossy().starts_with('-')
    })?;
    let (option, file) = (pair[0].display(), pair[1].display());
    Some(format!(
        "{option} takes its file behind an equals sign: {option}={file}; without one it writes to standard error"
    ))
}

/// Does what the arguments ask for; the exit status of `run` is the client's.
pub(crate) fn run(program: &Program, arguments: Arguments) -> Result<ExitCode> {
    let models = &program.models;
    match arguments.action {
        Action::Run(run) => start(models, run, Look::default()),
        Action::Trace(TraceRun { output, expression, time, relative, count, mut run }) => {
            ensure!(run.trace.is_none(), "`ioasis trace` traces already: -o names the file");
            run.trace = Some(output);
            let stamp = match time {
                _ if relative => Stamp::Since,
                0 => Stamp::None,
                1 => Stamp::Seconds,
                _ => Stamp::Microseconds,
            };
            start(models, run, Look { shown: expression.unwrap_or_default(), stamp, count })
        }
        Action::Serve(serve) => serve::run(models, &serve),
        Action::Torture(TortureRun { torture, run }) => {
            let options = run.machine_options()?;
            let is_fine = torture::run(program.name, &torture, options, run.command)?;
            Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Ps(ps) => Ok(looking::ps(&ps)),
        Action::Inspect(inspect) => looked(looking::inspect(&inspect)),
        Action::Top(top) => looked(looking::top(&top)),
        Action::Ctl(ctl) => looked(looking::ctl(&ctl)),
        Action::Models { name } => {
            print!("{}", list(models.list(), name.as_deref())?);
            Ok(ExitCode::SUCCESS)
        }
        Action::New(new) => {
            print!("{}", template::write(&new)?);
            Ok(ExitCode::SUCCESS)
        }
        Action::Doctor { json } => Ok(doctor(json)),
        Action::Completions { shell } => {
            let mut command = program.command();
            clap_complete::generate(shell, &mut command, program.name, &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Action::Man { folder } => {
            man::write(program.command(), &folder)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A run that cannot be asked, or says no, is a failure of the command and none of a start.
fn looked(done: Result<ExitCode>) -> Result<ExitCode> {
    done.or_else(|error| {
        eprintln!("ioasis: {error:#}");
        Ok(ExitCode::FAILURE)
    })
}

impl Run {
    /// The options that say what the machine is, for further runs on it.
    fn machine_options(&self) -> Result<Vec<OsString>> {
        let others = [
            ("--trace", self.trace.is_some()),
            ("--ledger", self.ledger.is_some()),
            ("--timeout", self.timeout.is_some()),
            ("--inject", !self.rules.is_empty()),
            ("--name", self.name.is_some()),
        ];
        if let Some((option, _)) = others.iter().find(|(_, given)| *given) {
            bail!("`ioasis torture` sets {option} itself, in every run");
        }
        let mut words: Vec<OsString> = Vec::new();
        for (option, values) in [("--iommu", &self.iommus), ("--device", &self.devices)] {
            words.extend(values.iter().flat_map(|value| [option.into(), value.into()]));
        }
        if let Some(machine) = &self.machine {
            words.extend(["--machine".into(), machine.into()]);
        }
        if let Some(linux) = self.linux {
            words.push(format!("--linux={}", machine::name(linux)).into());
        }
        let container = self.container.to_possible_value().context("every value has a name")?;
        words.push(format!("--container={}", container.get_name()).into());
        for (option, given) in
            [("--host-devices", self.host_devices), ("--mock", self.mock), ("--root", self.root)]
        {
            words.extend(given.then(|| option.into()));
        }
        Ok(words)
    }
}

/// The trace to `to`, or to standard error.
fn trace(to: Option<&Path>, look: Look) -> Result<Trace> {
    let Look { shown, stamp, count } = look;
    let json = to.and_then(|to| to.to_str()?.strip_prefix("json:"));
    let (path, format) =
        json.map_or((to, Format::Text), |path| (Some(Path::new(path)), Format::Json));
    let trace = match path {
        None => Trace::stderr(format)?,
        Some(path) => Trace::file(path, format)
            .with_context(|| format!("cannot write the trace {}", path.display()))?,
    };
    // Each object has its time: what reads them has use for it.
    let stamp = if format == Format::Json { Stamp::Microseconds } else { stamp };
    let trace = trace.with_lines(shown, stamp);
    Ok(if count { trace.with_counts() } else { trace })
}

fn start(models: &Models, run: Run, look: Look) -> Result<ExitCode> {
    let mut description = Description::default();
    if let Some(path) = &run.machine {
        description.read(path)?;
    }
    for iommu in &run.iommus {
        description.add_iommu(iommu)?;
    }
    for device in &run.devices {
        description.add(device)?;
    }
    description.linux = run.linux.unwrap_or(description.linux);
    description.place()?;
    let host_pci = if run.host_devices { HostPci::Shown } else { HostPci::Hidden };
    let leftovers = if run.kill_on_exit { Leftovers::Kill } else { Leftovers::Await };
    let trace = run.trace.map(|to| trace(to.as_deref(), look)).transpose()?;
    let (mock, fault_injection) = if run.mock {
        (MockHardware::Present, FaultInjection::Present)
    } else {
        (MockHardware::Absent, FaultInjection::Absent)
    };
    let hardware::Built { iommu, devices, iommu_of } = hardware::build(models, &description, mock)?;
    let machine = Machine {
        iommu,
        devices,
        view: view::Options {
            host_pci,
            fault_injection,
            container: run.container.into(),
            iommus: hardware::in_sysfs(&description),
            user: if run.root { User::Root } else { User::Own },
            stores: match run.trap_stores {
                Switch::On => Stores::Trapped,
                Switch::Off => Stores::Polled,
            },
            ..view::Options::default()
        },
        iommu_of,
        drivers: hardware::drivers(&description),
    };
    let ledger = match run.ledger {
        None => None,
        Some(None) => Some(Ledger::stderr()?),
        Some(Some(path)) => Some(
            Ledger::file(&path)
                .with_context(|| format!("cannot write the ledger {}", path.display()))?,
        ),
    };
    let options = RunOptions {
        command: run.command,
        leftovers,
        limit: run.timeout,
        explain: if run.explain { Explain::Findings } else { Explain::Nothing },
        rules: run
            .rules
            .iter()
            .map(|text| Rule::parse(text).map_err(Error::msg))
            .collect::<Result<_>>()?,
        faults: if run.fail_on_fault { OnFaults::Fail } else { OnFaults::Pass },
        control: control(run.name.as_deref())?,
        machine,
        trace,
        ledger,
    };
    match ioasis_supervisor::run(options) {
        Ok(status) => ioasis_supervisor::exit_like(status),
        Err(failure) => {
            eprintln!("ioasis: {failure}");
            Ok(ExitCode::from(failure.status))
        }
    }
}

/// The run's control socket. A run that has none to be had goes on without, unless it was given a name.
fn control(name: Option<&str>) -> Result<Option<control::Socket>> {
    match name {
        Some(name) => {
            looking::check_name(name)?;
            control::Socket::open(Some(name)).map(Some).map_err(Error::msg)
        }
        None => Ok(control::Socket::open(None).ok()),
    }
}

/// Prints what works on this host; fails when a run cannot.
fn doctor(json: bool) -> ExitCode {
    let checks = doctor::report();
    if json {
        let object = |check: &doctor::Check| {
            serde_json::json!({
                "name": check.name,
                "status": check.status.to_string(),
                "detail": check.detail,
                "mend": check.mend,
            })
        };
        let list = serde_json::Value::Array(checks.iter().map(object).collect());
        println!("{list:#}");
    } else {
        for check in &checks {
            println!("{:<8} {}: {}", check.status.to_string(), check.name, check.detail);
            if let Some(mend) = &check.mend {
                println!("         {mend}");
            }
        }
    }
    if checks.iter().any(|check| check.status == doctor::Status::Missing) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// What `ioasis models` prints: every model with its options, or one alone.
fn list(models: &[ModelInfo], only: Option<&str>) -> Result<String> {
    let names = models.iter().map(|model| model.name);
    if let Some(name) = only {
        ensure!(
            names.clone().any(|known| known == name),
            "no device model is called {name:?}{}; there are {}",
            meant(name, names.clone()),
            names.collect::<Vec<_>>().join(", ")
        );
    }
    let mut text = String::new();
    for model in models.iter().filter(|model| only.is_none_or(|name| name == model.name)) {
        let _ = writeln!(text, "{}: {}", model.name, model.summary);
        for option in model.options {
            let _ = writeln!(
                text,
                "    {}=  {}: {} (default: {})",
                option.name, option.meaning, option.accepted, option.default
            );
        }
    }
    let _ = writeln!(text, "every device:");
    for (key, meaning) in machine::KEYS {
        let _ = writeln!(text, "    {key}=  {meaning}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    fn with_a_model() -> Program {
        let mut models = Models::default();
        let testdev = models.list().iter().find(|model| model.name == "testdev");
        models.add(ModelInfo { name: "mine", ..*testdev.expect("a model") });
        Program { name: "my-ioasis", models }
    }

    #[test]
    fn an_added_model_is_listed_completed_and_meant_like_ours() {
        let Program { models, .. } = with_a_model();
        let text = list(models.list(), Some("mine")).expect("listed");
        assert!(text.starts_with("mine: "), "{text}");
        let error = list(models.list(), Some("mien")).expect_err("no model").to_string();
        assert!(error.contains("did you mean mine?"), "{error}");
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh] {
            let (mut script, mut command) = (Vec::new(), with_a_model().command());
            clap_complete::generate(shell, &mut command, "my-ioasis", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("my-ioasis") && script.contains("virtio-net mine"), "{shell}");
        }
        let words = words("my-ioasis run --device mine,latch=on -- true");
        let Action::Run(run) = with_a_model().parse(words).expect("a command line").action else {
            panic!("a run");
        };
        assert_eq!(run.devices, ["mine,latch=on"], "options may follow a name");
    }

    #[test]
    fn an_added_model_is_a_device_of_a_machine() {
        let Program { models, .. } = with_a_model();
        let mut description = Description::default();
        description.add("mine").expect("described");
        description.place().expect("placed");
        assert!(hardware::build(&models, &description, MockHardware::Absent).is_ok());
        let ours = Models::default();
        let error = hardware::build(&ours, &description, MockHardware::Absent).unwrap_err();
        assert!(error.to_string().contains("no device model is called \"mine\""), "{error}");
    }

    #[test]
    fn a_time_has_a_unit_or_is_of_seconds() {
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(
            ["90", "90s", "2m", "1h", "1500ms"].map(seconds),
            [90.0, 90.0, 120.0, 3600.0, 1.5].map(Ok)
        );
        for wrong in [
            "",
            "s",
            "0",
            "-1s",
            "1.5s",
            "1d",
            "1 s",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_command_needs_no_dashes_before_it_and_keeps_its_own() {
        for (line, command) in [
            ("ioasis run --device testdev -- a --root", "a --root"),
            ("ioasis run --device testdev a --root -- b", "a --root -- b"),
            ("ioasis run --trace a", "a"),
            ("ioasis run --trace=t a -b", "a -b"),
        ] {
            let Action::Run(run) = Arguments::try_parse_from(words(line)).expect(line).action
            else {
                panic!("{line}");
            };
            assert_eq!(run.command, words(command), "{line}");
        }
    }

    #[test]
    fn a_file_behind_a_blank_is_not_taken_for_the_command() {
        let error = misplaced(&words("run --trace foo --device x -- cmd")).expect("a blank");
        assert!(error.contains("--trace=foo"), "{error}");
        for right in [
            "run --trace -- cmd",
            "run --trace=foo -- cmd",
            "run --trace cmd",
            "run a -- --trace b",
        ] {
            assert_eq!(misplaced(&words(right)), None, "{right}");
        }
    }
}
