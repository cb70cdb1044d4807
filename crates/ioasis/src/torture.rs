//! `ioasis torture`: one run to learn which calls a program makes, then one for each call and each errno that Linux can answer there,
//! with that call failing so. What a program does about it is judged by how it ends.
//!
//! Each run is `ioasis run --inject ..`, so that a finding is done again by the one line that reports it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Arguments of `ioasis torture`, beside those of a run.
#[derive(Debug, clap::Args)]
pub(crate) struct Torture {
    /// Stop after this time, e.g. 10m; the report says how many runs were left
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = crate::cli::duration)]
    budget: Duration,

    /// Take a run that lasts longer for one that hangs, in place of ten times the run in which nothing fails, 5s at least
    #[arg(long, value_name = "TIME", value_parser = crate::cli::duration)]
    limit: Option<Duration>,

    /// Look at the results of a run that ended with 0: a command for sh, which fails when they are wrong
    #[arg(long, value_name = "COMMAND")]
    check: Option<String>,

    /// Fail the first N and the last of the calls of one name
    #[arg(long, value_name = "N", default_value_t = 3)]
    calls: u64,

    /// Do only part K of N, counted from 1: for several machines
    #[arg(long, value_name = "K/N", value_parser = shard, default_value = "1/1")]
    shard: (u64, u64),

    /// Write the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// One run to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    call: String,
    nth: u64,
    /// All from that one on fail so: what a program that tries again sees.
    onwards: bool,
    errno: &'static str,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It failed and said so, or did without.
    Fine,
    /// A signal ended it.
    Crashed(i32),
    /// It did not end by itself.
    Hung,
    /// It ended with 0 and its results are wrong.
    Wrong,
    /// A device could not reach memory, and it ended with 0.
    Fault,
}

fn shard(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    parsed
        .filter(|&(k, n): &(u64, u64)| k >= 1 && k <= n)
        .ok_or_else(|| "a part is K/N with K from 1 to N, as 3/16".to_owned())
}

/// Errnos after which programs try again: these stay, or a program that asks for ever is not found.
const TRIED_AGAIN: [&str; 4] = ["EAGAIN", "EBUSY", "EMFILE", "ENOMEM"];

/// What Linux can answer to a call, beside what its arguments decide: what a program cannot rule out.
fn errnos(call: &str) -> &'static [&'static str] {
    match call {
        "openat" => &["ENOENT", "EACCES", "EBUSY", "EMFILE"],
        "VFIO_IOMMU_MAP_DMA" | "IOMMU_IOAS_MAP" | "IOMMU_IOAS_MAP_FILE" => {
            &["ENOMEM", "EEXIST", "EINVAL", "EFAULT"]
        }
        "VFIO_IOMMU_UNMAP_DMA" | "IOMMU_IOAS_UNMAP" => &["ENOMEM", "EINVAL"],
        "VFIO_DEVICE_SET_IRQS" => &["ENOSPC", "ENOMEM", "EINVAL", "EBUSY"],
        "VFIO_GROUP_SET_CONTAINER" | "VFIO_SET_IOMMU" | "VFIO_GROUP_GET_DEVICE_FD" => {
            &["EBUSY", "EPERM", "ENODEV", "EINVAL"]
        }
        "VFIO_DEVICE_BIND_IOMMUFD" | "VFIO_DEVICE_ATTACH_IOMMUFD_PT" => {
            &["EBUSY", "EPERM", "EINVAL", "ENODEV"]
        }
        "VFIO_DEVICE_RESET" | "VFIO_DEVICE_PCI_HOT_RESET" => &["ENOTTY", "EINVAL", "EAGAIN"],
        _ => &["EINVAL", "ENOMEM", "ENOTTY"],
    }
}

/// The runs that `counts`, calls by name in the order of their first times, ask for.
fn cases(counts: &[(String, u64)], calls: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    for (call, count) in counts {
        let mut turns: Vec<_> = (1..=*count).take_while(|&nth| nth <= calls).collect();
        if *count > calls {
            turns.push(*count);
        }
        for nth in turns {
            cases.extend(errnos(call).iter().map(|&errno| Case {
                call: call.clone(),
                nth,
                onwards: TRIED_AGAIN.contains(&errno),
                errno,
            }));
        }
    }
    cases
}

/// The calls of a trace in JSON that a rule can name, in the order of their first times.
fn learn(trace: &str) -> Result<Vec<(String, u64)>> {
    let mut counts: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for line in trace.lines() {
        let object: serde_json::Value =
            serde_json::from_str(line).context("a line of the trace")?;
        let name = match object["call"].as_str() {
            Some("openat") => Some("openat"),
            Some("ioctl") => object["request"].as_str().filter(|name| !name.starts_with("_IO")),
            _ => None,
        };
        if let Some(name) = name {
            let place = counts.len();
            counts.entry(name.to_owned()).or_insert((place, 0)).1 += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, (place, _))| *place);
    Ok(counts.into_iter().map(|(name, (_, count))| (name, count)).collect())
}

/// What makes the runs.
struct Runs {
    program: PathBuf,
    /// What the program is called.
    name: String,
    /// Options of the machine.
    options: Vec<OsString>,
    command: Vec<OsString>,
    check: Option<String>,
}

impl Runs {
    fn run(&self, more: &[String]) -> Command {
        let mut run = Command::new(&self.program);
        run.arg("run").args(&self.options).args(more).arg("--").args(&self.command);
        run
    }

    /// The run that shows what `case` showed, as a shell takes it.
    fn line(&self, case: &Case) -> String {
        let words = self.options.iter().map(|word| word.to_string_lossy().into_owned());
        let rule = ["--inject".to_owned(), case.rule(), "--".to_owned()];
        let command = self.command.iter().map(|word| word.to_string_lossy().into_owned());
        let words = words.chain(rule).chain(command).map(|word| quoted(&word));
        format!("{} run {}", self.name, words.collect::<Vec<_>>().join(" "))
    }

    /// Makes the run of a case, which ends within `limit` and a little more.
    fn judge(&self, case: &Case, limit: Duration) -> Result<Outcome> {
        use std::os::unix::process::ExitStatusExt;
        let options = [
            "--inject".to_owned(),
            case.rule(),
            "--kill-on-exit".to_owned(),
            "--fail-on-fault".to_owned(),
            format!("--timeout={}ms", limit.as_millis()),
        ];
        let mut run = self.run(&options);
        let status = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let status = status.context("a run does not start")?;
        Ok(match (status.code(), status.signal()) {
            (Some(124), _) => Outcome::Hung,
            (Some(121), _) => Outcome::Fault,
            (Some(0), _) if !self.is_right()? => Outcome::Wrong,
            // What a shell says of a child that a signal ended.
            (Some(code @ 129..=159), _) => Outcome::Crashed(code - 128),
            (Some(_), _) => Outcome::Fine,
            (None, signal) => Outcome::Crashed(signal.unwrap_or_default()),
        })
    }

    /// Whether the check finds the results as they should be.
    fn is_right(&self) -> Result<bool> {
        let Some(check) = &self.check else { return Ok(true) };
        let mut shell = Command::new("sh");
        shell.args(["-c", check]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(shell.status().context("sh does not start")?.success())
    }
}

impl Case {
    fn rule(&self) -> String {
        let onwards = if self.onwards { "+" } else { "" };
        format!("call={},errno={},nth={}{onwards}", self.call, self.errno, self.nth)
    }
}

impl Outcome {
    fn words(&self) -> Option<String> {
        Some(match self {
            Self::Fine => return None,
            Self::Crashed(signal) => format!("crashed, signal {signal}"),
            Self::Hung => "hung".to_owned(),
            Self::Wrong => "ended with 0 and the check fails".to_owned(),
            Self::Fault => "ended with 0 and a device could not reach memory".to_owned(),
        })
    }
}

/// Does what `torture` asks for with the machine of `options`. Whether nothing was found.
pub(crate) fn run(
    name: &str,
    torture: &Torture,
    options: Vec<OsString>,
    command: Vec<OsString>,
) -> Result<bool> {
    let program = std::env::current_exe().context("this program has no path")?;
    let runs =
        Runs { program, name: name.to_owned(), options, command, check: torture.check.clone() };
    let begun = Instant::now();
    let (counts, took) = learned(&runs)?;
    let limit = torture.limit.unwrap_or_else(|| (took * 10).max(Duration::from_secs(5)));
    let all = cases(&counts, torture.calls);
    let (part, parts) = torture.shard;
    let mine: Vec<_> = (0_u64..)
        .zip(all)
        .filter(|(index, _)| index % parts == part - 1)
        .map(|(_, case)| case)
        .collect();
    println!(
        "{} calls of {} names; {} runs, each at most {limit:?}",
        counts.iter().map(|c| c.1).sum::<u64>(),
        counts.len(),
        mine.len()
    );
    let mut judged = Vec::new();
    for case in &mine {
        if begun.elapsed() > torture.budget {
            break;
        }
        let outcome = runs.judge(case, limit)?;
        if let Some(words) = outcome.words() {
            println!("{words}: {}", runs.line(case));
        }
        judged.push((case, outcome));
    }
    let found = judged.iter().filter(|(_, outcome)| *outcome != Outcome::Fine).count();
    let left = mine.len() - judged.len();
    let rest = if left == 0 {
        String::new()
    } else {
        format!("; {left} were left when the budget of {:?} was over", torture.budget)
    };
    println!("{} runs, {found} findings{rest}", judged.len());
    if let Some(path) = &torture.junit {
        let text = junit(&runs, &judged);
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(found == 0)
}

/// The calls of a run in which nothing fails, and how long it takes.
fn learned(runs: &Runs) -> Result<(Vec<(String, u64)>, Duration)> {
    let trace = std::env::temp_dir().join(format!("ioasis-torture-{}.json", std::process::id()));
    let option = format!(
        "--trace=json:{}",
        trace.to_str().context("the folder for temporary files has an odd name")?
    );
    let begun = Instant::now();
    let output =
        runs.run(&[option]).stdin(Stdio::null()).output().context("a run does not start")?;
    let took = begun.elapsed();
    let text = std::fs::read_to_string(&trace);
    let _ = std::fs::remove_file(&trace);
    if !output.status.success() {
        bail!(
            "with nothing failing the program ends with {}, so there is nothing to compare with:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    ensure!(runs.is_right()?, "with nothing failing the check fails");
    let counts = learn(&text.context("the run wrote no trace")?)?;
    ensure!(!counts.is_empty(), "the program makes no VFIO or IOMMUFD call that could fail");
    Ok((counts, took))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The results as JUnit XML: a suite, with a case for each run.
fn junit(runs: &Runs, judged: &[(&Case, Outcome)]) -> String {
    let failed = judged.iter().filter(|(_, outcome)| *outcome != Outcome::Fine).count();
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "<testsuite name=\"ioasis torture\" tests=\"{}\" failures=\"{failed}\">",
        judged.len()
    );
    for (case, outcome) in judged {
        let (call, name) =
            (escaped(&case.call), escaped(&format!("{} of turn {}", case.errno, case.nth)));
        let _ = write!(text, "  <testcase classname=\"{call}\" name=\"{name}\"");
        let _ = match outcome.words() {
            None => writeln!(text, "/>"),
            Some(words) => writeln!(
                text,
                "><failure message=\"{}\">{}</failure></testcase>",
                escaped(&words),
                escaped(&runs.line(case))
            ),
        };
    }
    text + "</testsuite>\n"
}

/// Text inside XML, without the characters that XML 1.0 has no way to write.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | ' '.. => escaped.push(character),
            _ => escaped.push('?'),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_learned_in_their_order_and_fail_first_and_last() {
        let trace = "{\"time\":1.5,\"pid\":1,\"call\":\"openat\",\"path\":\"/dev/vfio/vfio\",\"result\":3}\n\
                     {\"pid\":1,\"call\":\"ioctl\",\"request\":\"VFIO_IOMMU_UNMAP_DMA\",\"result\":0}\n\
                     {\"device\":\"0000:01:00.0\",\"reset\":true}\n\
                     {\"pid\":1,\"call\":\"ioctl\",\"request\":\"VFIO_IOMMU_UNMAP_DMA\",\"result\":0}\n\
                     {\"pid\":1,\"call\":\"ioctl\",\"request\":\"_IO(';', 0xf0)\",\"errno\":\"ENOTTY\",\"why\":\"x\"}\n";
        let counts = learn(trace).expect("a trace");
        assert_eq!(counts, [("openat".to_owned(), 1), ("VFIO_IOMMU_UNMAP_DMA".to_owned(), 2)]);
        let rules: Vec<_> = cases(&counts[1..], 1).iter().map(Case::rule).collect();
        assert_eq!(
            rules,
            [
                "call=VFIO_IOMMU_UNMAP_DMA,errno=ENOMEM,nth=1+",
                "call=VFIO_IOMMU_UNMAP_DMA,errno=EINVAL,nth=1",
                "call=VFIO_IOMMU_UNMAP_DMA,errno=ENOMEM,nth=2+",
                "call=VFIO_IOMMU_UNMAP_DMA,errno=EINVAL,nth=2",
            ]
        );
    }

    #[test]
    fn every_errno_that_is_tried_is_one() {
        for call in [
            "openat",
            "VFIO_IOMMU_MAP_DMA",
            "VFIO_DEVICE_SET_IRQS",
            "VFIO_SET_IOMMU",
            "IOMMU_DESTROY",
        ] {
            for errno in errnos(call) {
                let rule = format!("call={call},errno={errno}");
                assert!(ioasis_supervisor::Rule::parse(&rule).is_ok(), "{rule}");
            }
        }
    }

    #[test]
    fn words_of_a_shell_and_of_xml_stay_what_they_are() {
        assert_eq!(["a-b", "", "it's", "a b"].map(quoted), ["a-b", "''", r"'it'\''s'", "'a b'"]);
        assert_eq!(escaped("a<b>&\"\u{1}"), "a&lt;b&gt;&amp;&quot;?");
    }

    #[test]
    fn a_part_is_one_of_its_number() {
        assert_eq!(shard("3/16"), Ok((3, 16)));
        for wrong in ["0/2", "3/2", "1", "x/1"] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
    }
}
