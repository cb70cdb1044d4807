//! The states of a device that migrates, and which leads to which. Linux:
//! `vfio_mig_get_next_state`, drivers/vfio/vfio_main.c.

use ioasis_uapi::vfio;
use ioasis_uapi::{Errno, Error, Result};

/// `VFIO_DEVICE_STATE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Error,
    Stop,
    Running,
    StopCopy,
    Resuming,
    RunningP2p,
    PreCopy,
    PreCopyP2p,
}

use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

const ALL: [(State, u32); 8] = [
    (State::Error, vfio::DEVICE_STATE_ERROR),
    (Stop, vfio::DEVICE_STATE_STOP),
    (Running, vfio::DEVICE_STATE_RUNNING),
    (StopCopy, vfio::DEVICE_STATE_STOP_COPY),
    (Resuming, vfio::DEVICE_STATE_RESUMING),
    (RunningP2p, vfio::DEVICE_STATE_RUNNING_P2P),
    (PreCopy, vfio::DEVICE_STATE_PRE_COPY),
    (PreCopyP2p, vfio::DEVICE_STATE_PRE_COPY_P2P),
];

impl State {
    /// Its number.
    pub(crate) fn number(self) -> u32 {
        let found = ALL.iter().find(|(state, _)| *state == self);
        found.expect("every state has its number").1
    }

    /// The state with this number.
    fn numbered(number: u32) -> Option<Self> {
        ALL.iter().find(|(_, other)| *other == number).map(|(state, _)| *state)
    }

    /// Whether a device with these `MIGRATION_*` flags has it. None can ask for ERROR.
    fn is_among(self, flags: u64) -> bool {
        let wanted = match self {
            State::Error => return false,
            Stop | Running | StopCopy | Resuming => vfio::MIGRATION_STOP_COPY,
            RunningP2p => vfio::MIGRATION_STOP_COPY | vfio::MIGRATION_P2P,
            PreCopy => vfio::MIGRATION_STOP_COPY | vfio::MIGRATION_PRE_COPY,
            PreCopyP2p => {
                vfio::MIGRATION_STOP_COPY | vfio::MIGRATION_P2P | vfio::MIGRATION_PRE_COPY
            }
        };
        flags & wanted == wanted
    }

    /// Whether its stream has begun while it runs.
    pub(crate) fn is_pre_copy(self) -> bool {
        matches!(self, PreCopy | PreCopyP2p)
    }
}

/// The next state on the way from `current` to another, of a device that has all.
fn hop(current: State, goal: State) -> Option<State> {
    Some(match (current, goal) {
        (State::Error, _) | (_, State::Error) => return None,
        (same, goal) if same == goal => same,
        (Stop, StopCopy | Resuming) => goal,
        (Stop, _) => RunningP2p,
        (Running, PreCopy) => PreCopy,
        (Running, _) => RunningP2p,
        (PreCopy, PreCopyP2p | StopCopy) => PreCopyP2p,
        (PreCopy, _) => Running,
        (PreCopyP2p, PreCopy | StopCopy) => goal,
        (PreCopyP2p, _) => RunningP2p,
        (StopCopy, PreCopy | PreCopyP2p) => return None,
        (StopCopy | Resuming, _) => Stop,
        (RunningP2p, Running | PreCopy) => Running,
        (RunningP2p, PreCopyP2p) => PreCopyP2p,
        (RunningP2p, _) => Stop,
    })
}

/// The next state of a device with these flags that is to come from `current` to state number
/// `goal`. States it does not have are skipped.
///
/// # Errors
///
/// `EINVAL` when there is no way.
pub(super) fn next(flags: u64, current: State, goal: u32) -> Result<State> {
    let Some(goal) = State::numbered(goal).filter(|goal| goal.is_among(flags)) else {
        return Err(Error::at(Errno::EINVAL, "the device has no such state", goal.into()));
    };
    let mut next = hop(current, goal);
    while let Some(state) = next
        && !state.is_among(flags)
    {
        next = hop(state, goal);
    }
    next.ok_or(Error::at(Errno::EINVAL, "no way leads to that state", goal.number().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux's table: a row for each state we are in, a column for each that is asked for, both in
    /// the order STOP, RUNNING, PRE_COPY, PRE_COPY_P2P, STOP_COPY, RESUMING, RUNNING_P2P.
    const LINUX: [(State, [&str; 7]); 8] = [
        (Stop, ["S", "RP", "RP", "RP", "SC", "RE", "RP"]),
        (Running, ["RP", "R", "PC", "RP", "RP", "RP", "RP"]),
        (PreCopy, ["R", "R", "PC", "PP", "PP", "R", "R"]),
        (PreCopyP2p, ["RP", "RP", "PC", "PP", "SC", "RP", "RP"]),
        (StopCopy, ["S", "S", "-", "-", "SC", "S", "S"]),
        (Resuming, ["S", "S", "S", "S", "S", "RE", "S"]),
        (RunningP2p, ["S", "R", "R", "PP", "S", "S", "RP"]),
        (State::Error, ["-"; 7]),
    ];
    const GOALS: [State; 7] = [Stop, Running, PreCopy, PreCopyP2p, StopCopy, Resuming, RunningP2p];

    fn named(name: &str) -> Option<State> {
        Some(match name {
            "S" => Stop,
            "R" => Running,
            "RP" => RunningP2p,
            "PC" => PreCopy,
            "PP" => PreCopyP2p,
            "SC" => StopCopy,
            "RE" => Resuming,
            _ => return None,
        })
    }

    const EVERYTHING: u64 =
        vfio::MIGRATION_STOP_COPY | vfio::MIGRATION_P2P | vfio::MIGRATION_PRE_COPY;

    #[test]
    fn every_hop_is_linuxs() {
        for (current, row) in LINUX {
            for (goal, expected) in GOALS.into_iter().zip(row) {
                let found = next(EVERYTHING, current, goal.number()).ok();
                assert_eq!(found, named(expected), "{current:?} to {goal:?}");
            }
        }
    }

    #[test]
    fn nobody_asks_for_an_error_or_for_a_state_that_is_not_there() {
        for number in [vfio::DEVICE_STATE_ERROR, vfio::DEVICE_STATE_NR, u32::MAX] {
            let refused = next(EVERYTHING, Running, number).expect_err("no such state");
            assert_eq!(refused.errno, Errno::EINVAL);
        }
        let without = |flags, goal: State| next(flags, Running, goal.number()).is_err();
        assert!(without(vfio::MIGRATION_STOP_COPY, RunningP2p));
        assert!(without(vfio::MIGRATION_STOP_COPY | vfio::MIGRATION_P2P, PreCopy));
        assert!(without(vfio::MIGRATION_STOP_COPY | vfio::MIGRATION_PRE_COPY, PreCopyP2p));
    }

    #[test]
    fn states_that_a_device_lacks_are_skipped_and_every_way_ends() {
        let flags = [0, vfio::MIGRATION_P2P, vfio::MIGRATION_PRE_COPY]
            .map(|more| vfio::MIGRATION_STOP_COPY | more);
        for flags in flags {
            let has = |state: &State| state.is_among(flags);
            for current in GOALS.into_iter().filter(has) {
                for goal in GOALS.into_iter().filter(has) {
                    let mut at = current;
                    for _ in 0..8 {
                        match next(flags, at, goal.number()) {
                            Ok(state) => at = state,
                            Err(_) => assert_eq!((current, goal), (StopCopy, PreCopy)),
                        }
                        assert!(has(&at));
                    }
                    let stays = (current, goal) == (StopCopy, PreCopy);
                    assert_eq!(at, if stays { current } else { goal }, "{current:?}, {flags}");
                }
            }
        }
        let alone = vfio::MIGRATION_STOP_COPY;
        assert_eq!(next(alone, Running, StopCopy.number()), Ok(Stop));
        assert_eq!(next(alone, Stop, Running.number()), Ok(Running));
    }
}
