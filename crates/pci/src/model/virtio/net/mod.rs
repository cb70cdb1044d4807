//! `virtio-net`: a network card (Virtio 1.2, 5.1). `receive` and `transmit` move packets, `control`
//! does the commands of the control queue, `filter` says which packets are the driver's, and what
//! the cable leads to is `model::net`.
//!
//! No offload is offered: a packet that leaves is whole and its checksums are the driver's. A
//! packet waits for a buffer of the driver, and whoever sent it waits behind it; one that has
//! waited for 100 ms is dropped, but for packets of a file, which keep.

mod control;
mod filter;
mod receive;
mod transmit;

use std::sync::atomic::{AtomicU32, Ordering};

use self::filter::{Filter, Mac};
use self::receive::Receiver;
use super::queue::Queue;
use super::transport::{Interface, Transport};
use super::{Change, Device, Identity, Stop, Stopped, feature};
use crate::alarm::Alarm;
use crate::bus::Bus;
use crate::model::net::{self as backend, Backend};
use crate::model::options::{ModelError, OptionInfo, Options};
use crate::model::{Model, ModelInfo, Progress};

/// How `ioasis models` lists it.
pub(in crate::model) const INFO: ModelInfo = ModelInfo {
    name: "virtio-net",
    summary: "a virtio 1.2 network card (1af4:1041; transitional or legacy 1af4:1000)",
    options: OPTIONS,
    create,
};

const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "pair",
        meaning: "connects the two cards of the run that have the same name here",
        accepted: "a name that exactly two cards have",
        default: "none",
    },
    OptionInfo {
        name: "loop",
        meaning: "gives back each packet that is sent",
        accepted: "on or off",
        default: "off",
    },
    OptionInfo {
        name: "rx",
        meaning: "receives the packets of a pcap file, once",
        accepted: "the path of a pcap file of Ethernet packets",
        default: "none",
    },
    OptionInfo {
        name: "tx",
        meaning: "writes the packets that are sent into a pcap file",
        accepted: "the path of a file, which is made or emptied",
        default: "none",
    },
    OptionInfo {
        name: "stream",
        meaning: "sends and receives through a stream socket, as QEMU's -netdev stream does and passt",
        accepted: "the path of a UNIX socket on which somebody listens",
        default: "none",
    },
    OptionInfo {
        name: "mac",
        meaning: "the address of the card",
        accepted: "six bytes as in 52:54:00:12:34:56, of no group",
        default: "52:54:00:12:34:56 and the following",
    },
    OptionInfo {
        name: "queues",
        meaning: "the number of queue pairs",
        accepted: "a number from 1 to 8",
        default: "1",
    },
    OptionInfo {
        name: "interface",
        meaning: "the registers it has: those of virtio 1.0 and later, the legacy ones in an I/O BAR, or both",
        accepted: "modern, transitional or legacy",
        default: "modern",
    },
];

const PAIRS_MAX: u16 = 8;

/// Network cards are number 1; network controller, Ethernet (PCI Code and ID Assignment 1.11, 1.3).
const IDENTITY: Identity = Identity { id: 1, class: 0x02_00_00 };

// Feature bits, 5.1.3.
const MAC: u64 = 1 << 5;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
const MQ: u64 = 1 << 22;
const CTRL_MAC_ADDR: u64 = 1 << 23;

/// Bytes of a packet at most.
const PACKET_MAX: usize = 0xffff;

fn create(options: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
    static CARDS: AtomicU32 = AtomicU32::new(0x12_3456);
    let pairs = options.parsed("queues", 1, |text| {
        text.parse().ok().filter(|pairs| (1..=PAIRS_MAX).contains(pairs))
    })?;
    let mac = options.parsed("mac", None, |text| filter::address(text).map(Some))?;
    let mac = mac.unwrap_or_else(|| {
        let [_, high, middle, low] = CARDS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        [0x52, 0x54, 0, high, middle, low]
    });
    let interface = options.parsed("interface", Interface::Modern, |text| match text {
        "modern" => Some(Interface::Modern),
        "transitional" => Some(Interface::Transitional),
        "legacy" => Some(Interface::Legacy),
        _ => None,
    })?;
    let backend = backend::open(options)?;
    let card = Card {
        pairs,
        active: 1,
        accepted: 0,
        own: mac,
        filter: Filter::new(mac),
        link: backend.is_up(),
        backend,
        asked: false,
        receiver: Receiver::new(pairs),
        chains: Vec::new(),
        buffer: Vec::new(),
    };
    Ok(Box::new(Transport::new(Box::new(card), interface)))
}

/// The card.
#[derive(Debug)]
struct Card {
    /// Queue pairs there are, and those in use.
    pairs: u16,
    active: u16,
    /// Feature bits that the driver accepted.
    accepted: u64,
    /// The address after a reset.
    own: Mac,
    filter: Filter,
    backend: Box<dyn Backend>,
    /// Whether the cable was last seen to lead somewhere.
    link: bool,
    /// The driver has set another address since this was last looked at.
    asked: bool,
    receiver: Receiver,
    chains: Vec<super::queue::Chain>,
    buffer: Vec<u8>,
}

impl Card {
    fn has(&self, bit: u64) -> bool {
        self.accepted & bit != 0
    }

    /// Bytes before each packet (5.1.6): the count of buffers is there from 1.0 on, or with
    /// mergeable buffers.
    fn header(&self) -> usize {
        if self.has(feature::VERSION_1) || self.has(MRG_RXBUF) { 12 } else { 10 }
    }

    /// The control queue comes behind the pairs that the driver knows of (5.1.2).
    fn control_queue(&self) -> usize {
        if self.has(MQ) { 2 * usize::from(self.pairs) } else { 2 }
    }
}

/// The queue for packets that come in of a pair, and that for those that leave.
fn receive_queue(pair: u16) -> usize {
    2 * usize::from(pair)
}

fn transmit_queue(pair: u16) -> usize {
    2 * usize::from(pair) + 1
}

/// Names the queue because of which the device stops.
fn of(index: usize) -> impl Fn(Stop) -> (u16, Stop) {
    move |stop| (u16::try_from(index).expect("17 queues at most"), stop)
}

impl Device for Card {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn model(&self) -> &'static str {
        INFO.name
    }

    fn queues(&self) -> u16 {
        2 * self.pairs + 1
    }

    fn features(&self) -> u64 {
        let features = MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR;
        if self.pairs > 1 { features | MQ } else { features }
    }

    fn refuses(&self, features: u64) -> Option<&'static str> {
        let needs = features & (CTRL_RX | MQ | CTRL_MAC_ADDR) != 0;
        (needs && features & CTRL_VQ == 0)
            .then_some("bits that need VIRTIO_NET_F_CTRL_VQ are accepted without it, in all")
    }

    fn start(&mut self, features: u64) {
        self.accepted = features;
        self.filter.promiscuous = features & CTRL_RX == 0;
        self.backend.set_running(true);
    }

    fn configuration(&self) -> Vec<u8> {
        let mut bytes = self.filter.own.to_vec();
        bytes.extend(u16::from(self.link).to_le_bytes());
        bytes.extend(self.pairs.to_le_bytes());
        bytes
    }

    /// A driver without CTRL_MAC_ADDR stores its address there (5.1.4.1, the legacy interface).
    fn store(&mut self, offset: usize, value: u8) {
        if !self.has(feature::VERSION_1)
            && let Some(byte) = self.filter.own.get_mut(offset)
        {
            *byte = value;
        }
    }

    fn reset(&mut self) {
        self.accepted = 0;
        self.active = 1;
        self.filter = Filter::new(self.own);
        self.receiver = Receiver::new(self.pairs);
        self.backend.set_running(false);
    }

    fn reset_queue(&mut self, index: u16) {
        self.receiver.forget(index);
    }

    fn attach(&mut self, alarm: Alarm) {
        self.backend.attach(alarm);
    }

    fn change(&mut self) -> Change {
        let link = self.backend.is_up();
        let asked = std::mem::take(&mut self.asked);
        if std::mem::replace(&mut self.link, link) != link {
            Change::News
        } else if asked {
            Change::Asked
        } else {
            Change::None
        }
    }

    fn serve(&mut self, bus: &Bus<'_>, queues: &mut [Queue]) -> Stopped<Progress> {
        let mut worked = false;
        let control = self.control_queue();
        if self.has(CTRL_VQ) && queues[control].enabled && queues[control].kicked {
            self.control(bus, &mut queues[control]).map_err(of(control))?;
            worked = true;
        }
        for pair in 0..self.pairs {
            let index = transmit_queue(pair);
            if index != control && queues[index].enabled && queues[index].kicked {
                worked |= self.transmit(bus, &mut queues[index]).map_err(of(index))?;
            }
        }
        worked |= self.receive(bus, queues)?;
        self.backend.settle();
        let waits = self.backend.is_silent() || self.receiver.is_patient(&*self.backend);
        Ok(match worked {
            true => Progress::Worked,
            false if waits => Progress::Waits,
            false => Progress::Idle,
        })
    }
}

#[cfg(test)]
mod tests;
