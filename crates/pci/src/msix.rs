//! MSI-X: which vectors may send their message, and which wait to (PCI Express 6.0, 6.1.4; PCI Local Bus 3.0, 6.8.2, 6.8.3).
//!
//! A vector that is masked, or whose function is, sets its pending bit instead of sending, and sends when it is unmasked.
//! Linux masks an entry of the table as long as its vector has no handler (`free_irq`, `request_irq`), which under VFIO
//! means no eventfd; [`Msix::set_handler`] is told of that.
//!
//! Where table and pending bits lie in pages that a program may map, the pages show them. The program reaches there what it
//! would reach of a real device: a bit it stores to Vector Control counts until the host writes the entry the next time.
//! DIFFERS: address and data of an entry are what the program stored last, and mean nothing; Linux would show the host's.
//!
//! Lock order: `Msix::state` -> what [`Irq::raise`](crate::Irq::raise) takes.

use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_sys::mapping::Mapping;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use crate::bus::{Heard, Session};
use crate::description::{Description, MsixTable, PageKind, table_bytes};

/// Bytes of an entry, and where in it Vector Control lies.
const ENTRY: u64 = 16;
const VECTOR_CONTROL: u64 = 12;
const MASK: u32 = 1;

/// The table of one function.
#[derive(Debug)]
pub(crate) struct Msix {
    vectors: u16,
    /// Where a program sees the table, and the pending bits.
    shown: [Option<(usize, u64)>; 2],
    /// Changed under `state`.
    enabled: AtomicBool,
    /// Whether a vector waits. Changed under `state`.
    waiting: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// A bit a vector: it has a handler, so the host leaves it unmasked.
    handled: Box<[u64]>,
    pending: Box<[u64]>,
}

/// Whether a vector has a handler on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// None: its entry is masked.
    Absent,
    /// One: its entry is not masked.
    Present,
}

fn place(vector: u16) -> (usize, u64) {
    (usize::from(vector / 64), 1 << (vector % 64))
}

impl State {
    fn is_handled(&self, vector: u16) -> bool {
        let (word, bit) = place(vector);
        self.handled[word] & bit != 0
    }
}

impl Msix {
    pub(crate) fn new(description: &Description) -> Self {
        let vectors = description.vectors.msix;
        let words = vec![0; usize::from(vectors.div_ceil(64))].into_boxed_slice();
        let state = State { handled: words.clone(), pending: words };
        let page = |bar: usize, offset: u32| {
            let offset = u64::from(offset);
            let kind = description.bars[bar].as_ref().and_then(|bar| bar.page_kind(offset));
            (kind == Some(PageKind::Shared)).then_some((bar, offset))
        };
        let shown = description.msix.map_or([None; 2], |table: MsixTable| {
            [page(table.table_bar, table.table_offset), page(table.pba_bar, table.pba_offset)]
        });
        Self {
            vectors,
            shown,
            enabled: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    fn table<'a>(&self, session: &'a Session) -> Option<(&'a Mapping, u64)> {
        let (bar, offset) = self.shown[0]?;
        Some((session.pages[bar].as_deref()?, offset))
    }

    /// Whether Vector Control masks `vector`. The pages decide where there are any; pages that are gone mask nothing.
    fn is_masked(&self, session: &Session, state: &State, vector: u16) -> bool {
        match self.table(session) {
            Some((pages, table)) => is_masked_in(pages, table, vector),
            None => !state.is_handled(vector),
        }
    }

    /// Whether `vector` may send, without a lock: the pages are looked at again under it where they say no.
    fn is_open(&self, session: &Session, vector: u16) -> bool {
        let shown = self.table(session);
        shown.is_some_and(|(pages, table)| !is_masked_in(pages, table, vector))
    }

    /// The state after power-on, or after a reset that the host's registers are restored around: nothing is pending. Entries of
    /// vectors without a handler are masked.
    pub(crate) fn reset(&self, session: &Session) -> Result<()> {
        let mut state = self.state.lock();
        state.pending.fill(0);
        self.waiting.store(false, Ordering::Release);
        if let Some((pages, table)) = self.table(session) {
            let bytes = usize::try_from(table_bytes(self.vectors)).expect("at most 32 KiB");
            pages.fill(table, bytes, 0)?;
        }
        self.show_pending(session, &state)?;
        (0..self.vectors).try_for_each(|vector| self.show_mask(session, &state, vector))
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// MSI-X is enabled or disabled; no vector has a handler then, and what is pending stays so.
    pub(crate) fn set_enabled(&self, session: Option<&Session>, enabled: bool) {
        let mut state = self.state.lock();
        self.enabled.store(enabled, Ordering::Release);
        state.handled.fill(0);
        if let Some(session) = session {
            // Pages that are gone show nothing, and kill the device at its next poll.
            let _ =
                (0..self.vectors).try_for_each(|vector| self.show_mask(session, &state, vector));
        }
    }

    /// `vector` has a handler from now on, or has none. One that waits sends its message to a new handler at once, if
    /// `may_send`.
    pub(crate) fn set_handler(
        &self,
        session: &Session,
        vector: u16,
        handler: Handler,
        may_send: bool,
    ) {
        if vector >= self.vectors {
            return;
        }
        let mut state = self.state.lock();
        let (word, bit) = place(vector);
        match handler {
            Handler::Absent => state.handled[word] &= !bit,
            Handler::Present => state.handled[word] |= bit,
        }
        // Pages that are gone show nothing, and kill the device at its next poll.
        let _ = self.show_mask(session, &state, vector);
        if may_send {
            self.send_pending(session, &mut state);
        }
    }

    /// The device has a message to send on `vector`: sends it, or notes that it is pending.
    pub(crate) fn raise(&self, session: &Session, vector: u16, function_masked: bool) {
        if !self.enabled.load(Ordering::Acquire) || vector >= self.vectors {
            session.irq.raise(vector);
            return;
        }
        // A handler may go just after the look at its mask: nobody hears then, and the mask is there by now.
        if !function_masked
            && self.is_open(session, vector)
            && session.irq.raise(vector) == Heard::Yes
        {
            return;
        }
        let mut state = self.state.lock();
        if !function_masked && !self.is_masked(session, &state, vector) {
            session.irq.raise(vector);
            return;
        }
        let (word, bit) = place(vector);
        if state.pending[word] & bit == 0 {
            state.pending[word] |= bit;
            self.waiting.store(true, Ordering::Release);
            // Pages that are gone show nothing, and kill the device at its next poll.
            let _ = self.show_pending(session, &state);
        }
    }

    /// Of each vector, whether it is masked and whether it waits to send.
    pub(crate) fn look(&self, session: &Session) -> Vec<(bool, bool)> {
        let state = self.state.lock();
        let vector = |vector| {
            let (word, bit) = place(vector);
            (self.is_masked(session, &state, vector), state.pending[word] & bit != 0)
        };
        (0..self.vectors).map(vector).collect()
    }

    /// Whether a vector waits to send its message.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// The cause of `vector`'s interrupt is gone: a message that waits is not sent any more (PCI Express 6.0, 6.1.4.5).
    pub(crate) fn withdraw(&self, session: &Session, vector: u16) {
        if !self.is_waiting() || vector >= self.vectors {
            return;
        }
        let mut state = self.state.lock();
        let (word, bit) = place(vector);
        if state.pending[word] & bit != 0 {
            state.pending[word] &= !bit;
            self.settle(session, &state);
        }
    }

    /// Sends what waits and is not masked any more.
    pub(crate) fn send_waiting(&self, session: &Session, may_send: bool) {
        if self.is_waiting() && may_send {
            self.send_pending(session, &mut self.state.lock());
        }
    }

    fn send_pending(&self, session: &Session, state: &mut State) {
        if !self.enabled.load(Ordering::Acquire) || !self.is_waiting() {
            return;
        }
        let mut sent = false;
        for vector in 0..self.vectors {
            let (word, bit) = place(vector);
            if state.pending[word] & bit != 0 && !self.is_masked(session, state, vector) {
                state.pending[word] &= !bit;
                session.irq.raise(vector);
                sent = true;
            }
        }
        if sent {
            self.settle(session, state);
        }
    }

    /// Pending bits were cleared.
    fn settle(&self, session: &Session, state: &State) {
        let waiting = state.pending.iter().any(|&word| word != 0);
        self.waiting.store(waiting, Ordering::Release);
        // Pages that are gone show nothing, and kill the device at its next poll.
        let _ = self.show_pending(session, state);
    }

    /// Reads the pending bits, from byte `offset` of them.
    pub(crate) fn read_pending(&self, offset: u64, bytes: &mut [u8]) {
        let state = self.state.lock();
        for (at, byte) in (offset..).zip(bytes) {
            let word = usize::try_from(at / 8).ok().and_then(|word| state.pending.get(word));
            let inside = usize::try_from(at % 8).expect("below 8");
            *byte = word.map_or(0, |word| word.to_le_bytes()[inside]);
        }
    }

    /// The pending bits, a bit a vector.
    pub(crate) fn pending(&self) -> Vec<u64> {
        self.state.lock().pending.to_vec()
    }

    /// Whether these can be the pending bits of so many vectors.
    pub(crate) fn could_be_pending(&self, words: &[u64]) -> bool {
        let used = self.vectors % 64;
        let beyond = if used == 0 { 0 } else { u64::MAX << used };
        words.len() == usize::from(self.vectors.div_ceil(64))
            && words.last().is_none_or(|last| last & beyond == 0)
    }

    /// Takes pending bits over that could be pending.
    pub(crate) fn set_pending(&self, session: &Session, words: Vec<u64>) -> Result<()> {
        let mut state = self.state.lock();
        self.waiting.store(words.iter().any(|&word| word != 0), Ordering::Release);
        state.pending = words.into_boxed_slice();
        self.show_pending(session, &state)
    }

    fn show_mask(&self, session: &Session, state: &State, vector: u16) -> Result<()> {
        let Some((pages, table)) = self.table(session) else { return Ok(()) };
        let control = if state.is_handled(vector) { 0 } else { MASK };
        pages.store_u32(table + u64::from(vector) * ENTRY + VECTOR_CONTROL, control)
    }

    fn show_pending(&self, session: &Session, state: &State) -> Result<()> {
        let Some((bar, offset)) = self.shown[1] else { return Ok(()) };
        let Some(pages) = session.pages[bar].as_deref() else { return Ok(()) };
        (offset..)
            .step_by(8)
            .zip(&state.pending)
            .try_for_each(|(offset, &word)| pages.store_u64(offset, word))
    }
}

/// Whether the table at `table` of `pages` masks `vector`. What cannot be read masks nothing.
fn is_masked_in(pages: &Mapping, table: u64, vector: u16) -> bool {
    let control = pages.load_u32(table + u64::from(vector) * ENTRY + VECTOR_CONTROL);
    control.is_ok_and(|control| control & MASK != 0)
}

#[cfg(test)]
mod tests;
