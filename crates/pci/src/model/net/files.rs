//! Packets out of a pcap file and into one.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ioasis_sys::sync::Mutex;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

use super::Backend;
use crate::model::options::ModelError;

/// The two files, of which one may be missing.
pub(super) struct Files {
    rx: Option<PcapReader<BufReader<File>>>,
    tx: Option<Written>,
    running: bool,
}

/// A file that is written, and what is not in it yet.
struct Written {
    file: File,
    writer: PcapWriter<Buffer>,
    buffer: Buffer,
}

/// Bytes that the writer leaves for whoever brings them to the file.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that are brought to the file at once.
const BUFFERED: usize = 256 << 10;

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Files(rx: {}, tx: {})", self.rx.is_some(), self.tx.is_some())
    }
}

fn refused(option: (&str, &str), path: &str, why: impl std::fmt::Display) -> ModelError {
    let (model, name) = option;
    ModelError::new(format!("{model}: {name}={path}: {why}"))
}

impl Files {
    pub(super) fn open(
        model: &str,
        rx: Option<&str>,
        tx: Option<&str>,
    ) -> Result<Self, ModelError> {
        let rx = rx
            .map(|path| {
                let file = File::open(path).map_err(|error| refused((model, "rx"), path, error))?;
                let reader = PcapReader::new(BufReader::new(file)).map_err(|error| {
                    refused((model, "rx"), path, format!("it is no pcap file: {error}"))
                })?;
                match reader.header().datalink {
                    DataLink::ETHERNET => Ok(reader),
                    other => Err(refused(
                        (model, "rx"),
                        path,
                        format!("its packets are {other:?}, not Ethernet"),
                    )),
                }
            })
            .transpose()?;
        let tx = tx
            .map(|path| {
                let file =
                    File::create(path).map_err(|error| refused((model, "tx"), path, error))?;
                let buffer = Buffer::default();
                let writer = PcapWriter::new(buffer.clone());
                let writer = writer.map_err(|error| refused((model, "tx"), path, error))?;
                let mut written = Written { file, writer, buffer };
                // Whoever reads it finds its header from the start.
                written.settle().map_err(|error| refused((model, "tx"), path, error))?;
                Ok(written)
            })
            .transpose()?;
        Ok(Self { rx, tx, running: false })
    }
}

impl Written {
    fn settle(&mut self) -> io::Result<()> {
        let mut bytes = self.buffer.0.lock();
        let done = self.file.write_all(&bytes);
        bytes.clear();
        done
    }
}

impl Backend for Files {
    fn send(&mut self, packet: &[u8]) {
        let Some(tx) = &mut self.tx else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let length = u32::try_from(packet.len()).expect("64 KiB at most");
        let written = tx.writer.write_packet(&PcapPacket::new(now, length, packet));
        written.expect("memory takes all of it");
        if tx.buffer.0.lock().len() > BUFFERED {
            self.settle();
        }
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> bool {
        if !self.running {
            return false;
        }
        let Some(rx) = &mut self.rx else { return false };
        match rx.next_packet() {
            Some(Ok(next)) => {
                packet.clear();
                packet.extend_from_slice(&next.data);
                true
            }
            // At its end, or where it is damaged, it has no more.
            Some(Err(_)) | None => {
                self.rx = None;
                false
            }
        }
    }

    fn waits(&self) -> bool {
        true
    }

    fn set_running(&mut self, running: bool) {
        self.running = running;
        self.settle();
    }

    fn settle(&mut self) {
        if let Some(tx) = &mut self.tx
            && !tx.buffer.0.lock().is_empty()
            && tx.settle().is_err()
        {
            // A disk that is full loses packets, as a cable does; half a record would spoil the
            // others.
            self.tx = None;
        }
    }
}
