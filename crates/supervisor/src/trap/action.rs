//! What a fault costs a thread that blocks or ignores SIGSEGV.
//!
//! The kernel makes sure that a fault is not overlooked: when the thread blocks the signal or its process ignores it, the
//! action becomes the default one and the signal is unblocked before the tracer hears of it (`force_sig_info_to_task`,
//! kernel/signal.c). A program whose fault is none must find both as they were.
//!
//! The action is known: it is looked at when the process is seized, and a call that changes it is stopped. The mask is not:
//! changing it is a call that programs make too often to be stopped. Whether SIGSEGV was in it is told by the last mask
//! that was seen, if nothing else has changed in it since; by whether the action was reset, if there is a handler; else by the
//! other signals that faults send, which a program blocks together with this one or not at all.
//!
//! DIFFERS: a thread without a handler that blocks SIGSEGV and not SIGBUS, SIGFPE and SIGILL, after a trapped store, loses it from its
//! mask at the next one.

/// The signal, in a mask.
pub(super) const SEGV: u64 = 1 << 10;
/// SIGILL, SIGBUS and SIGFPE.
const OTHER_FAULTS: u64 = 1 << 3 | 1 << 6 | 1 << 7;

/// What becomes of SIGSEGV in a process: a `struct sigaction` as the kernel has it, of 64-bit or 32-bit code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Action {
    bytes: Vec<u8>,
}

/// What an action does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Default,
    Ignore,
    Handler,
}

/// Bytes of `struct sigaction` in the kernel, 64-bit and 32-bit (asm/signal.h).
pub(super) const BYTES: usize = 32;
pub(super) const BYTES_32: usize = 20;

impl Action {
    /// The action that the struct `bytes` says.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `SIG_DFL`, `SIG_IGN`, or the address of a handler: the struct's first word.
    pub(super) fn kind(&self) -> Kind {
        match self.word(0) {
            0 => Kind::Default,
            1 => Kind::Ignore,
            _ => Kind::Handler,
        }
    }

    /// Whether a handler makes calls fail with EINTR that it interrupts. The flags are the struct's second word.
    pub(crate) fn interrupts(&self) -> bool {
        /// `SA_RESTART` (asm/signal.h).
        const RESTART: u64 = 0x1000_0000;
        self.kind() == Kind::Handler && self.word(1) & RESTART == 0
    }

    fn word(&self, index: usize) -> u64 {
        let width = match self.bytes.len() {
            BYTES => 8,
            BYTES_32 => 4,
            length => length,
        };
        let mut word = [0; 8];
        if let Some(bytes) = self.bytes.get(index * width..(index + 1) * width) {
            word[..width].copy_from_slice(bytes);
        }
        u64::from_le_bytes(word)
    }

    /// A handler of which nothing else is known yet.
    pub(super) fn unknown_handler() -> Self {
        Self { bytes: vec![2] }
    }

    /// Whether there is a handler that the process must be asked for.
    pub(super) fn is_unknown(&self) -> bool {
        self.bytes == [2]
    }

    /// The one that ignores the signal.
    pub(super) fn ignore() -> Self {
        let mut bytes = vec![0; BYTES];
        bytes[0] = 1;
        Self { bytes }
    }
}

/// What is known of a thread's mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mask {
    /// As it was last seen, before a fault could have changed it.
    seen: Option<u64>,
}

impl Mask {
    pub(super) const fn new(seen: u64) -> Self {
        Self { seen: Some(seen) }
    }

    /// The mask as the program has set it, from the one `now` that a fault has left. `was_reset` says whether the handler is
    /// gone; it is asked only where there is one.
    pub(super) fn before(&mut self, now: u64, kind: Kind, was_reset: impl FnOnce() -> bool) -> u64 {
        let blocked = match self.seen {
            Some(seen) if seen & !SEGV == now => seen & SEGV != 0,
            _ if kind == Kind::Handler => was_reset(),
            _ => now & OTHER_FAULTS == OTHER_FAULTS,
        };
        let before = if blocked { now | SEGV } else { now };
        self.seen = Some(before);
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_known_by_its_first_word_in_either_layout() {
        let action = |first: u64, bytes: usize| {
            let mut all = first.to_le_bytes().to_vec();
            all.resize(bytes, 0xff);
            Action::of(&all).kind()
        };
        assert_eq!(
            [0, 1, 2].map(|first| action(first, BYTES)),
            [Kind::Default, Kind::Ignore, Kind::Handler]
        );
        assert_eq!(Action::of(&[1, 0, 0, 0, 0xff].repeat(4)).kind(), Kind::Ignore);
        assert_eq!(
            (Action::default().kind(), Action::ignore().kind()),
            (Kind::Default, Kind::Ignore)
        );
    }

    #[test]
    fn a_handler_interrupts_calls_unless_its_flags_say_otherwise() {
        let action = |width: usize, handler: u64, flags: u64| {
            let words = [handler.to_le_bytes(), flags.to_le_bytes()];
            let mut bytes = [&words[0][..width], &words[1][..width]].concat();
            bytes.resize(if width == 8 { BYTES } else { BYTES_32 }, 0xff);
            Action::of(&bytes).interrupts()
        };
        for width in [4, 8] {
            assert!(action(width, 0x1000, 0) && action(width, 0x1000, 4));
            assert!(!action(width, 0x1000, 0x1000_0000) && !action(width, 0x1000, 0x1400_0004));
            assert!(!action(width, 0, 0) && !action(width, 1, 0));
        }
    }

    #[test]
    fn a_mask_that_was_seen_says_whether_the_signal_was_in_it() {
        let never = || panic!("it is known");
        let all = !(1_u64 << 8 | 1 << 18);
        let mut mask = Mask::new(all);
        assert_eq!(mask.before(all & !SEGV, Kind::Handler, never), all);
        assert_eq!(mask.before(all & !SEGV, Kind::Default, never), all, "and still is");
        let mut mask = Mask::new(0);
        assert_eq!(mask.before(0, Kind::Handler, never), 0);
    }

    #[test]
    fn a_mask_that_has_changed_is_judged_by_the_handler_or_by_the_other_faults() {
        let all = !(1_u64 << 8 | 1 << 18);
        let mut mask = Mask::new(0);
        assert_eq!(mask.before(all & !SEGV, Kind::Default, || unreachable!()), all);
        let mut mask = Mask::new(0);
        assert_eq!(mask.before(1 << 13, Kind::Ignore, || unreachable!()), 1 << 13);
        let mut mask = Mask::default();
        assert_eq!(mask.before(1 << 13, Kind::Handler, || true), 1 << 13 | SEGV);
        assert_eq!(mask.before(1 << 13, Kind::Handler, || unreachable!()), 1 << 13 | SEGV);
    }
}
