//! Runs the same steps by both sets of rules and compares every answer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A step of the client, what the type1 rules answer, and what those of Linux's compatibility layer do.
pub(crate) type Step = (&'static str, &'static str, &'static str);

/// The step has the same answer by both.
pub(crate) const fn same(step: &'static str, answer: &'static str) -> Step {
    (step, answer, answer)
}

/// A machine and how its container is opened.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    container: &'static str,
    path: &'static str,
}

const TYPE1: Way = Way { name: "type1", container: "type1", path: "/dev/vfio/vfio" };
const COMPAT: Way = Way { name: "compatibility", container: "type1", path: "/dev/iommu" };
const PROVIDED: Way = Way { name: "provided", container: "iommufd", path: "/dev/vfio/vfio" };

/// A container with the first group, the driver chosen, and its device open.
pub(crate) const ATTACHED: [Step; 5] = [
    same("open c container", "0"),
    same("open g /dev/vfio/1", "0"),
    same("setc g c", "0"),
    same("set c 3", "0"),
    same("device g d 0000:01:00.0", "0"),
];

/// The same with the first version of type1.
pub(crate) const ATTACHED_V1: [Step; 5] = [
    same("open c container", "0"),
    same("open g /dev/vfio/1", "0"),
    same("setc g c", "0"),
    same("set c 1", "0"),
    same("device g d 0000:01:00.0", "0"),
];

/// What one test runs on: options of `ioasis run`, and module parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    options: Vec<String>,
    parameters: String,
}

impl Machine {
    /// A machine with these devices.
    pub(crate) fn with(devices: &[&str]) -> Self {
        Self::default().and("--device", devices)
    }

    /// Also `option` with each of `values`.
    pub(crate) fn and(mut self, option: &str, values: &[&str]) -> Self {
        self.options.extend(values.iter().flat_map(|value| [option, value]).map(str::to_owned));
        self
    }

    /// The parameter is this at the start.
    pub(crate) fn parameter(mut self, module: &str, name: &str, value: &str) -> Self {
        self.parameters.push_str(&format!("[module.{module}]\n{name} = {value}\n"));
        self
    }

    /// Every step has the answer of each set of rules, on whichever node they hold.
    pub(crate) fn answers(&self, steps: &[Step]) {
        self.expect(TYPE1, steps, |step| step.1);
        self.expect(COMPAT, steps, |step| step.2);
        self.expect(PROVIDED, steps, |step| step.2);
    }

    /// As [`answers`](Self::answers), where iommufd answers otherwise on /dev/vfio/vfio than on /dev/iommu; the fourth column.
    pub(crate) fn answers_three_ways(&self, steps: &[(&'static str, [&'static str; 3])]) {
        for (column, way) in [TYPE1, COMPAT, PROVIDED].into_iter().enumerate() {
            let steps: Vec<Step> =
                steps.iter().map(|&(step, answers)| same(step, answers[column])).collect();
            self.expect(way, &steps, |step| step.1);
        }
    }

    /// The steps by the type1 rules only.
    pub(crate) fn type1_answers(&self, steps: &[Step]) {
        self.expect(TYPE1, steps, |step| step.1);
    }

    /// The steps by the compatibility rules, with the container at `path` and no node of type1.
    pub(crate) fn compat_answers_at(&self, path: &'static str, steps: &[Step]) {
        self.expect(Way { name: path, container: "none", path }, steps, |step| step.2);
    }

    fn expect(&self, way: Way, steps: &[Step], answer: fn(&Step) -> &'static str) {
        let client = client();
        let file = MachineFile::new(&self.parameters);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
        command.arg("run").args(&self.options).args(["--container", way.container]);
        if let Some(file) = &file {
            command.arg("--machine").arg(&file.0);
        }
        command.arg("--").arg(&client).arg(way.path).args(steps.iter().map(|step| step.0));
        let output = command.output().expect("ioasis starts");
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let mut answers = out.lines();
        let mut wrong = String::new();
        for step in steps {
            let found = answers.next().unwrap_or("nothing");
            let mark = if found.trim_end() == answer(step) {
                String::new()
            } else {
                format!("   <-- not {:?}", answer(step))
            };
            wrong.push_str(&format!("{} = {found:?}{mark}\n", step.0));
        }
        assert!(!wrong.contains("<--"), "{} rules:\n{wrong}{err}", way.name);
        assert_eq!(answers.next(), None, "one answer a step");
        assert!(output.status.success(), "{} rules: {}\n{err}", way.name, output.status);
    }
}

struct MachineFile(PathBuf);

impl MachineFile {
    fn new(text: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if text.is_empty() {
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("container-{}-{number}.toml", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).expect("a machine file");
        Some(Self(path))
    }
}

impl Drop for MachineFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The client, compiled once for all tests that run at the same time.
fn client() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/container.c");
    let changed = std::fs::metadata(&source).and_then(|meta| meta.modified()).expect("a source");
    let age = changed.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = folder.join(format!("container-client-{age}"));
    if !program.exists() {
        let fresh = folder.join(format!("container-client-{}", std::process::id()));
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Werror", "-static", "-o"]).arg(&fresh).arg(&source);
        assert!(gcc.status().expect("gcc is installed").success(), "container.c does not compile");
        std::fs::rename(&fresh, &program).expect("the same folder");
    }
    program
}
