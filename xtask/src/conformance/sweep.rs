//! Which steps `iommufd_fail_nth` made fail, from the trace of its run.
//!
//! A case repeats its calls and has step 1, 2, 3, ... of them fail, until none is left to fail. So
//! the steps that failed are numbered without a gap, and are as many as there are.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

/// The steps that failed in one process, in order: number and name.
type Steps<'a> = Vec<(u32, &'a str)>;

/// No case makes fewer steps: `access_pin_domain` makes an array of pages and a pinned range.
const FEWEST: usize = 2;

/// The sweeps of a trace, one a process, in the order of the processes.
pub(super) fn read(trace: &str) -> Vec<Steps<'_>> {
    let mut sweeps: Vec<(&str, Steps<'_>)> = Vec::new();
    for (pid, nth, step) in trace.lines().filter_map(line) {
        match sweeps.iter_mut().find(|(other, _)| *other == pid) {
            Some((_, steps)) => steps.push((nth, step)),
            None => sweeps.push((pid, vec![(nth, step)])),
        }
    }
    sweeps.into_iter().map(|(_, steps)| steps).collect()
}

/// Reads `[pid 123] fail-nth 7: an object could not be had`.
fn line(line: &str) -> Option<(&str, u32, &str)> {
    let (pid, rest) = line.strip_prefix("[pid ")?.split_once("] fail-nth ")?;
    let (nth, step) = rest.split_once(": ")?;
    Some((pid, nth.parse().ok()?, step.strip_suffix(" could not be had")?))
}

/// A line for every case, if each failed every step of its own once and in turn.
pub(super) fn judge(sweeps: &[Steps<'_>], cases: &[(&str, bool)]) -> Result<Vec<String>> {
    ensure!(
        sweeps.len() == cases.len(),
        "steps failed in {} processes, and there are {} cases",
        sweeps.len(),
        cases.len()
    );
    cases.iter().zip(sweeps).map(|(&(case, _), steps)| judge_one(case, steps)).collect()
}

fn judge_one(case: &str, steps: &Steps<'_>) -> Result<String> {
    if let Some(gap) = (1..).zip(steps).find(|(expected, (nth, _))| expected != nth) {
        bail!("{case}: step {} failed where {} was due", gap.1.0, gap.0);
    }
    ensure!(steps.len() >= FEWEST, "{case}: only {} steps failed", steps.len());
    let kinds: BTreeSet<_> = steps.iter().map(|&(_, step)| step).collect();
    Ok(format!("  {case}: {} steps failed in turn, of {} kinds", steps.len(), kinds.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "[pid 7] openat(\"/dev/iommu\", O_RDWR) = 4\n\
        [pid 7] fail-nth 1: an object could not be had\n\
        [pid 7] fail-nth 2: an area could not be had\n\
        [pid 7] fail-nth 3: an area could not be had\n\
        [pid 9] fail-nth 1: a file could not be had\n";

    #[test]
    fn every_process_is_a_sweep_and_is_named_after_its_case() {
        let sweeps = read(TRACE);
        assert_eq!(sweeps.len(), 2);
        let lines = judge(&sweeps[..1], &[("a.b", true)]).expect("whole");
        assert_eq!(lines, ["  a.b: 3 steps failed in turn, of 2 kinds"]);
    }

    #[test]
    fn a_sweep_with_a_gap_or_of_nothing_much_is_none() {
        let both = [("a.b", true), ("a.c", true)];
        let error = |trace: &str| judge(&read(trace), &both).expect_err("a fault").to_string();
        assert_eq!(error(TRACE), "a.c: only 1 steps failed");
        let gap = TRACE.replace("fail-nth 3", "fail-nth 4");
        assert_eq!(error(&gap), "a.b: step 4 failed where 3 was due");
        assert_eq!(error(""), "steps failed in 0 processes, and there are 2 cases");
    }
}
