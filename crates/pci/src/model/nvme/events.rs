//! Asynchronous events (NVMe 1.4, 5.2): the program leaves commands with the controller, which completes one when
//! something happens. After that, events of the same type are not told until the log page that explains it is read.

use super::features::Features;
use super::identify::EVENT_REQUESTS;
use super::log::{ERROR_INFORMATION, HEALTH};
use super::status::Status;
use crate::migration::{Reader, Writer, bad};

/// What can happen here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A doorbell was given a value that is no index of its queue.
    BadDoorbell,
    /// The temperature passed a threshold.
    Temperature,
}

/// The type in bits 2:0, the information in bits 15:8, the log page in bits 23:16 (figures 145 to 147).
const ERROR_STATUS: u32 = 0;
const HEALTH_STATUS: u32 = 1;

impl Event {
    const ALL: [Self; 2] = [Self::BadDoorbell, Self::Temperature];

    /// As it is saved.
    const fn number(self) -> u8 {
        match self {
            Self::BadDoorbell => 0,
            Self::Temperature => 1,
        }
    }

    const fn log_page(self) -> u8 {
        match self {
            Self::BadDoorbell => ERROR_INFORMATION,
            Self::Temperature => HEALTH,
        }
    }

    /// Dword 0 of the completion.
    const fn result(self) -> u32 {
        let (kind, information) = match self {
            Self::BadDoorbell => (ERROR_STATUS, 1),
            Self::Temperature => (HEALTH_STATUS, 1),
        };
        kind | information << 8 | (self.log_page() as u32) << 16
    }

    /// Errors cannot be turned off; health events have a bit in the feature.
    const fn is_wanted(self, features: &Features) -> bool {
        match self {
            Self::BadDoorbell => true,
            Self::Temperature => features.async_events & 1 << 1 != 0,
        }
    }
}

/// Requests that wait for events, and events that wait for requests.
#[derive(Debug, Default)]
pub(super) struct Events {
    requests: Vec<u16>,
    waiting: Vec<Event>,
    /// Log pages to be read before events that point there are told again.
    unread: Vec<u8>,
}

impl Events {
    pub(super) fn save(&self, state: &mut Writer) {
        state.list(self.requests.iter(), |state, request| state.u16(*request));
        state.list(self.waiting.iter(), |state, event| state.u8(event.number()));
        state.list(self.unread.iter(), |state, page| state.u8(*page));
    }

    pub(super) fn load(state: &mut Reader<'_>) -> ioasis_uapi::Result<Self> {
        let requests = state.list(EVENT_REQUESTS, Reader::u16)?;
        let waiting = state.list(Event::ALL.len(), |state| {
            let number = state.u8()?;
            let found = Event::ALL.into_iter().find(|event| event.number() == number);
            found.map_or_else(|| bad("no such event", number), Ok)
        })?;
        let unread = state.list(Event::ALL.len(), Reader::u8)?;
        if Event::ALL.iter().any(|event| waiting.iter().filter(|other| *other == event).count() > 1)
        {
            return bad("an event waits twice", waiting.len() as u64);
        }
        Ok(Self { requests, waiting, unread })
    }

    /// Keeps a request.
    pub(super) fn request(&mut self, command: u16) -> Result<(), Status> {
        if self.requests.len() == EVENT_REQUESTS {
            return Err(Status::EVENT_LIMIT_EXCEEDED);
        }
        self.requests.push(command);
        Ok(())
    }

    /// Whether `command` is a request that waits.
    pub(super) fn holds(&self, command: u16) -> bool {
        self.requests.contains(&command)
    }

    /// Gives a request up; answers whether it was there.
    pub(super) fn abort(&mut self, command: u16) -> bool {
        let before = self.requests.len();
        self.requests.retain(|&held| held != command);
        before != self.requests.len()
    }

    /// Notes that something happened.
    pub(super) fn happened(&mut self, event: Event, features: &Features) {
        if event.is_wanted(features) && !self.waiting.contains(&event) {
            self.waiting.push(event);
        }
    }

    /// A log page was read.
    pub(super) fn page_read(&mut self, page: u8) {
        self.unread.retain(|&unread| unread != page);
        self.waiting.retain(|event| event.log_page() != page);
    }

    /// The next request that an event completes: its command identifier and dword 0.
    pub(super) fn next(&mut self) -> Option<(u16, u32)> {
        let told = |event: &Event| !self.unread.contains(&event.log_page());
        let index = self.waiting.iter().position(told)?;
        if self.requests.is_empty() {
            return None;
        }
        let event = self.waiting.remove(index);
        self.unread.push(event.log_page());
        Some((self.requests.remove(0), event.result()))
    }
}
