//! Bytes that move from and to a client, whose device changes its state meanwhile.

use ioasis_pci::{Bdf, Windows};

use super::*;

/// A client that does something else while its bytes move.
struct Busy<'a> {
    act: &'a dyn Fn(),
    refuses: bool,
    got: Vec<u8>,
}

impl<'a> Busy<'a> {
    fn new(act: &'a dyn Fn()) -> Self {
        Self { act, refuses: false, got: Vec::new() }
    }

    fn done(&self) -> Result<()> {
        (self.act)();
        if self.refuses {
            return Err(Error::new(Errno::EFAULT, "no such page"));
        }
        Ok(())
    }
}

impl Destination for Busy<'_> {
    fn put(&mut self, _: u64, bytes: &[u8]) -> Result<()> {
        self.done()?;
        self.got.extend_from_slice(bytes);
        Ok(())
    }
}

impl Source for Busy<'_> {
    fn get(&mut self, _: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(7);
        self.done()
    }
}

fn saved() -> Arc<SaveFile> {
    SaveFile::complete(Weak::new(), vec![1, 2, 3, 4])
}

fn resumed() -> (Arc<Function>, Arc<ResumeFile>) {
    let model = ioasis_pci::create("testdev", &[]).expect("a testdev");
    let address = Bdf::new(0, 1, 0, 0).expect("an address");
    let function = Arc::new(Function::new(address, model, &mut Windows::default()));
    let file = ResumeFile::new(&function);
    (function, file)
}

#[test]
fn a_read_that_waits_for_its_client_keeps_the_device_from_nothing() {
    let file = saved();
    let disable = || file.disable();
    let mut client = Busy::new(&disable);
    assert_eq!(file.read_to(0, 2, &mut client), Ok(2));
    assert_eq!(client.got, [1, 2], "what it was when the read began");
    let after = file.read_to(0, 2, &mut Busy::new(&|| ()));
    assert_eq!(after.map_err(|error| error.errno), Err(Errno::ENODEV));
}

#[test]
fn a_read_that_fails_reads_nothing() {
    let file = saved();
    let mut client = Busy::new(&|| ());
    client.refuses = true;
    assert_eq!(file.read_to(0, 3, &mut client).map_err(|error| error.errno), Err(Errno::EFAULT));
    client.refuses = false;
    assert_eq!(file.read_to(0, 9, &mut client), Ok(4));
    assert_eq!(client.got, [1, 2, 3, 4]);
}

#[test]
fn a_write_that_waits_for_its_client_keeps_the_device_from_nothing() {
    let (_function, file) = resumed();
    assert_eq!(file.write_from(3, &mut Busy::new(&|| ())), Ok(3));
    let take = || assert_eq!(file.take(), [7; 3]);
    let late = file.write_from(2, &mut Busy::new(&take));
    assert_eq!(late.map_err(|error| error.errno), Err(Errno::ENODEV));
    assert_eq!(file.taken.lock().coming, 0);
}

#[test]
fn writes_at_once_take_no_more_memory_than_a_stream_has() {
    let (_function, file) = resumed();
    let errno = |length| {
        let done = file.write_from(length, &mut Busy::new(&|| ()));
        done.map_err(|error| error.errno)
    };
    let meanwhile = || assert_eq!(errno(STREAM_MAX as u64), Err(Errno::ENOMEM));
    let mut client = Busy::new(&meanwhile);
    client.refuses = true;
    let refused = file.write_from(1, &mut client).map_err(|error| error.errno);
    assert_eq!(refused, Err(Errno::EFAULT));
    assert_eq!(errno(STREAM_MAX as u64 + 1), Err(Errno::ENOMEM));
    assert_eq!(errno(1), Ok(1), "what failed is no part of it");
    assert_eq!(file.take(), [7]);
}
