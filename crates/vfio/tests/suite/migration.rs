//! The states of a device that migrates, and the files its state goes through.

use std::sync::Arc;

use ioasis_iommufd::{self as iommufd, ClientFile};
use ioasis_uapi::vfio::{
    self, DEVICE_STATE_ERROR as ERROR, DEVICE_STATE_PRE_COPY as PRE_COPY,
    DEVICE_STATE_PRE_COPY_P2P as PRE_COPY_P2P, DEVICE_STATE_RESUMING as RESUMING,
    DEVICE_STATE_RUNNING as RUNNING, DEVICE_STATE_RUNNING_P2P as RUNNING_P2P,
    DEVICE_STATE_STOP as STOP, DEVICE_STATE_STOP_COPY as STOP_COPY, DeviceFeature,
    DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration, PrecopyInfo,
};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{DeviceFile, GroupFile};
use zerocopy::IntoBytes;

use crate::rig::{ARG, BASE, NOWHERE, READ_ONLY, Rig, at, errno};

const GET: u32 = vfio::DEVICE_FEATURE_GET;
const SET: u32 = vfio::DEVICE_FEATURE_SET;

/// An open testdev.
struct Open {
    rig: Rig,
    file: Arc<DeviceFile>,
    _group: Arc<GroupFile>,
}

/// What a change of state gave.
type Stream = Option<Arc<dyn ClientFile>>;

impl Open {
    fn new(migration: &str) -> Self {
        let rig = Rig::testdev(migration);
        let (group, file) = rig.open();
        Self { rig, file, _group: group }
    }

    fn feature(&self, flags: u32, payload: &[u8]) -> Result<()> {
        let argsz = u32::try_from(size_of::<DeviceFeature>() + payload.len()).expect("short");
        self.rig.caller.put(ARG, DeviceFeature { argsz, flags }.as_bytes());
        self.rig.caller.put(ARG + 8, payload);
        self.file.ioctl(&self.rig.caller, vfio::DEVICE_FEATURE, ARG).map(|_| ())
    }

    /// Asks for a state; the file of its stream, if it has one.
    fn set(&self, state: u32) -> Result<Stream> {
        let payload = DeviceFeatureMigState { device_state: state, data_fd: 77 };
        let done = self.feature(SET | vfio::DEVICE_FEATURE_MIG_DEVICE_STATE, payload.as_bytes());
        let answer: DeviceFeatureMigState = self.rig.caller.get(ARG + 8);
        assert_eq!(answer.device_state, state, "the state asked for stays in the argument");
        if done.is_err() {
            assert_eq!(answer.data_fd, -1);
        }
        done?;
        Ok((answer.data_fd != -1).then(|| {
            iommufd::Client::installed(&self.rig.caller, answer.data_fd).expect("a stream")
        }))
    }

    fn state(&self) -> u32 {
        self.feature(GET | vfio::DEVICE_FEATURE_MIG_DEVICE_STATE, &[0; 8]).expect("a state");
        let answer: DeviceFeatureMigState = self.rig.caller.get(ARG + 8);
        assert_eq!(answer.data_fd, -1);
        answer.device_state
    }

    fn reset(&self) {
        self.file.ioctl(&self.rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
    }

    /// Brings a device that was just reset to `state`.
    fn bring(&self, state: u32) -> Stream {
        match state {
            // ERROR comes of a stream that ends too early.
            ERROR => {
                self.set(RESUMING).expect("RESUMING");
                assert_eq!(errno(self.set(STOP)), Some(Errno::EINVAL));
                None
            }
            state => self.set(state).expect("a state"),
        }
    }

    fn precopy_info(&self, stream: &dyn ClientFile, info: PrecopyInfo) -> Result<PrecopyInfo> {
        self.rig.caller.put(ARG, info.as_bytes());
        stream.ioctl(&self.rig.caller, vfio::MIG_GET_PRECOPY_INFO, ARG)?;
        Ok(self.rig.caller.get(ARG))
    }

    /// Stores a word in the registers.
    fn store(&self, offset: u64, value: u32) {
        self.file.write(at(0, offset), &value.to_le_bytes()).expect("a register");
    }

    fn load(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.file.read(at(0, offset), &mut word).expect("a register");
        u32::from_le_bytes(word)
    }
}

fn read(stream: &dyn ClientFile, length: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = stream.queue().expect("it is read").read_to(0, length, &mut bytes)?;
    assert_eq!(read, bytes.len() as u64);
    Ok(bytes)
}

fn write(stream: &dyn ClientFile, mut bytes: &[u8]) -> Result<u64> {
    let length = bytes.len() as u64;
    stream.queue().expect("it is written").write_from(length, &mut bytes)
}

fn read_all(stream: &dyn ClientFile) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match read(stream, 1000).expect("a stream") {
            more if more.is_empty() => return all,
            more => all.extend(more),
        }
    }
}

const STATES: [u32; 8] =
    [ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P];

/// Which `migration=` has a state.
fn has(migration: &str, state: u32) -> bool {
    match state {
        RUNNING_P2P => matches!(migration, "all" | "p2p"),
        PRE_COPY => matches!(migration, "all" | "pre-copy"),
        PRE_COPY_P2P => migration == "all",
        _ => true,
    }
}

/// What becomes of a device in state `from` that is asked for `to`: the state it is in then,
/// whether there is a stream, and the errno.
fn expected(migration: &str, from: u32, to: u32) -> (u32, bool, Option<Errno>) {
    let refused = (from, false, Some(Errno::EINVAL));
    let saving = |state| matches!(state, STOP_COPY | PRE_COPY | PRE_COPY_P2P);
    match (from, to) {
        (from, to) if from == to => (from, false, None),
        (ERROR, _) | (_, ERROR) | (STOP_COPY, PRE_COPY | PRE_COPY_P2P) => refused,
        (_, to) if to >= vfio::DEVICE_STATE_NR || !has(migration, to) => refused,
        // Nothing was written: no state.
        (RESUMING, _) => (ERROR, false, Some(Errno::EINVAL)),
        (from, to) => (to, to == RESUMING || saving(to) && !saving(from), None),
    }
}

#[test]
fn every_arc_of_the_state_machine_is_linuxs_in_every_device() {
    for migration in ["all", "p2p", "pre-copy", "none"] {
        let open = Open::new(migration);
        for from in STATES.into_iter().filter(|&state| has(migration, state)) {
            for to in STATES.into_iter().chain([8, u32::MAX]) {
                open.bring(from);
                assert_eq!(open.state(), from);
                let done = open.set(to);
                let found = (
                    open.state(),
                    done.as_ref().is_ok_and(Option::is_some),
                    done.err().map(|error| error.errno),
                );
                assert_eq!(found, expected(migration, from, to), "{migration}: {from} to {to}");
                open.reset();
                assert_eq!(open.state(), RUNNING);
            }
        }
    }
}

#[test]
fn a_device_says_which_states_it_has_and_how_long_its_state_is() {
    for (migration, flags) in [("none", 1), ("p2p", 3), ("pre-copy", 5), ("all", 7)] {
        let open = Open::new(migration);
        open.feature(GET | vfio::DEVICE_FEATURE_MIGRATION, &[0; 8]).expect("flags");
        let answer: DeviceFeatureMigration = open.rig.caller.get(ARG + 8);
        assert_eq!(answer.flags, flags);
        open.feature(GET | vfio::DEVICE_FEATURE_MIG_DATA_SIZE, &[0; 8]).expect("a size");
        let size: DeviceFeatureMigDataSize = open.rig.caller.get(ARG + 8);
        let stream = open.set(STOP_COPY).expect("a state").expect("a stream");
        assert!(size.stop_copy_length >= read_all(&*stream).len() as u64);
    }
}

#[test]
fn a_device_that_stays_has_none_of_it() {
    let open = Open::new("off");
    let rows = [
        (GET | vfio::DEVICE_FEATURE_MIGRATION, Errno::ENOTTY),
        (GET | vfio::DEVICE_FEATURE_MIG_DEVICE_STATE, Errno::ENOTTY),
        (SET | vfio::DEVICE_FEATURE_MIG_DEVICE_STATE, Errno::ENOTTY),
        (GET | vfio::DEVICE_FEATURE_MIG_DATA_SIZE, Errno::ENOTTY),
        (SET | vfio::DEVICE_FEATURE_MIG_PRECOPY_INFOv2, Errno::EINVAL),
    ];
    for (flags, expected) in rows {
        assert_eq!(errno(open.feature(flags, &[0; 8])), Some(expected), "{flags:#x}");
    }
    let open = Open::new("p2p");
    let flags = SET | vfio::DEVICE_FEATURE_MIG_PRECOPY_INFOv2;
    assert_eq!(errno(open.feature(flags, &[])), Some(Errno::EINVAL));
}

#[test]
fn a_stream_that_began_while_the_device_ran_ends_when_it_stopped() {
    let open = Open::new("all");
    let stream = open.set(PRE_COPY).expect("PRE_COPY").expect("a stream");
    let queue = stream.queue().expect("it is read");
    assert!(queue.is_readable() && !queue.is_writable());
    let mut all = read(&*stream, 20).expect("some");
    all.extend(read(&*stream, 4096).expect("the rest of what there is for now"));
    assert_eq!(errno(read(&*stream, 4096)), Some(Errno::ENOMSG));
    assert_eq!(read(&*stream, 0), Ok(vec![]), "nothing is asked for");
    assert!(!queue.is_readable());
    assert!(open.set(PRE_COPY_P2P).expect("PRE_COPY_P2P").is_none(), "it is the same stream");
    assert_eq!(errno(read(&*stream, 4096)), Some(Errno::ENOMSG));
    assert!(open.set(STOP_COPY).expect("STOP_COPY").is_none());
    assert!(queue.is_readable());
    all.extend(read_all(&*stream));
    assert!(queue.is_readable(), "the end is there to be read");
    assert_eq!(read(&*stream, 4096), Ok(vec![]));
    open.set(STOP).expect("STOP");
    assert_eq!(errno(read(&*stream, 4096)), Some(Errno::ENODEV));

    let other = Open::new("all");
    let stream = other.set(RESUMING).expect("RESUMING").expect("a stream");
    assert_eq!(write(&*stream, &all), Ok(all.len() as u64));
    other.set(RUNNING).expect("a state that was saved in two parts");
}

#[test]
fn what_is_left_is_told_in_the_order_of_linuxs_checks() {
    let open = Open::new("all");
    let stream = open.set(PRE_COPY).expect("PRE_COPY").expect("a stream");
    let caller = &open.rig.caller;
    let asked = PrecopyInfo { argsz: 24, flags: 0xabc, initial_bytes: 9, dirty_bytes: 9 };
    assert_eq!(errno(stream.ioctl(caller, vfio::DEVICE_FEATURE, NOWHERE)), Some(Errno::ENOTTY));
    let nowhere = stream.ioctl(caller, vfio::MIG_GET_PRECOPY_INFO, NOWHERE);
    assert_eq!(errno(nowhere), Some(Errno::EFAULT));
    let short = open.precopy_info(&*stream, PrecopyInfo { argsz: 23, ..asked });
    assert_eq!(errno(short), Some(Errno::EINVAL));
    let left = PrecopyInfo { initial_bytes: 48, dirty_bytes: 0, ..asked };
    assert_eq!(open.precopy_info(&*stream, asked), Ok(left), "flags are left alone");
    open.feature(SET | vfio::DEVICE_FEATURE_MIG_PRECOPY_INFOv2, &[]).expect("flags are wanted");
    read(&*stream, 40).expect("some");
    let left = PrecopyInfo { initial_bytes: 8, dirty_bytes: 0, flags: 0, ..asked };
    assert_eq!(open.precopy_info(&*stream, asked), Ok(left));
    open.set(PRE_COPY_P2P).expect("PRE_COPY_P2P");
    assert_eq!(open.precopy_info(&*stream, asked), Ok(left));
    caller.put(READ_ONLY, asked.as_bytes());
    let unwritable = stream.ioctl(caller, vfio::MIG_GET_PRECOPY_INFO, READ_ONLY);
    assert_eq!(errno(unwritable), Some(Errno::EFAULT));
    open.set(STOP_COPY).expect("STOP_COPY");
    assert_eq!(errno(open.precopy_info(&*stream, asked)), Some(Errno::EINVAL));
    open.set(RUNNING).expect("RUNNING");
    open.set(PRE_COPY).expect("another stream");
    assert_eq!(errno(open.precopy_info(&*stream, asked)), Some(Errno::ENODEV));
    let other = open.set(RESUMING).expect("RESUMING").expect("a stream");
    let info = other.ioctl(caller, vfio::MIG_GET_PRECOPY_INFO, ARG);
    assert_eq!(errno(info), Some(Errno::ENOTTY));
}

#[test]
fn a_device_that_stands_still_does_what_it_was_told_when_it_goes_on() {
    let open = Open::new("all");
    open.file.write(at(7, 4), &6_u16.to_le_bytes()).expect("a bus master");
    for state in [RUNNING_P2P, STOP, STOP_COPY, PRE_COPY_P2P] {
        open.set(state).expect("a state");
        open.store(8, 1);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(open.load(8), 1, "the command waits in state {state}");
        open.set(RUNNING).expect("RUNNING");
        // Nothing is mapped there.
        while open.load(8) != 1 << 31 {
            std::thread::yield_now();
        }
    }
    open.set(PRE_COPY).expect("PRE_COPY");
    open.store(8, 1);
    while open.load(8) != 1 << 31 {
        std::thread::yield_now();
    }
}

/// The stream of a device whose registers hold a command that waits.
fn stream() -> Vec<u8> {
    let open = Open::new("all");
    open.set(STOP).expect("STOP");
    open.store(0, 0x1234);
    open.store(8, 3);
    read_all(&*open.set(STOP_COPY).expect("STOP_COPY").expect("a stream"))
}

#[test]
fn the_state_of_a_device_is_that_of_another_one_then() {
    let open = Open::new("all");
    let resumed = open.set(RESUMING).expect("RESUMING").expect("a stream");
    assert_eq!(errno(read(&*resumed, 1)), Some(Errno::EBADF));
    for part in stream().chunks(100) {
        assert_eq!(write(&*resumed, part), Ok(part.len() as u64));
    }
    open.set(STOP).expect("the state is taken");
    assert_eq!((open.load(0), open.load(8)), (0x1234, 3));
    assert_eq!(errno(write(&*resumed, &[0])), Some(Errno::ENODEV));
    open.file.write(at(7, 4), &6_u16.to_le_bytes()).expect("a bus master");
    open.set(RUNNING).expect("RUNNING");
    while open.load(8) != 1 << 31 {
        std::thread::yield_now();
    }
}

#[test]
fn a_stream_that_is_damaged_changes_nothing_and_leaves_an_error() {
    let open = Open::new("all");
    let whole = stream();
    let resume = |bytes: &[u8]| {
        open.set(STOP).expect("STOP");
        open.store(0, 0xfeed);
        let resumed = open.set(RESUMING).expect("RESUMING").expect("a stream");
        // A bad header is refused at once, all else at the end.
        let _ = write(&*resumed, bytes);
        let done = open.set(STOP).map(|_| ());
        let found = (errno(done), open.state(), open.load(0));
        open.reset();
        found
    };
    assert_eq!(resume(&whole), (None, STOP, 0x1234));
    let refused = (Some(Errno::EINVAL), ERROR, 0xfeed);
    for end in (0..whole.len()).filter(|end| end % 37 == 0 || *end < 60) {
        assert_eq!(resume(&whole[..end]), refused, "{end} bytes");
    }
    for bit in (0..whole.len() * 8).filter(|bit| bit % 331 == 0 || *bit < 48 * 8) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(resume(&flipped), refused, "bit {bit}");
    }
    assert_eq!(resume(&[whole.as_slice(), &whole].concat()), refused, "two states");
}

#[test]
fn a_stream_of_another_device_is_refused_at_its_header_and_one_too_long_at_its_end() {
    let open = Open::new("all");
    let resumed = open.set(RESUMING).expect("RESUMING").expect("a stream");
    let mut other = stream();
    other[16] ^= 1;
    assert_eq!(write(&*resumed, &other[..47]), Ok(47));
    assert_eq!(errno(write(&*resumed, &other[47..48])), Some(Errno::EINVAL));
    let most = ioasis_pci::migration::STREAM_MAX;
    assert_eq!(write(&*resumed, &vec![0; most - 48]), Ok(most as u64 - 48));
    assert_eq!(errno(write(&*resumed, &[0])), Some(Errno::ENOMEM));
    assert_eq!(errno(open.set(STOP)), Some(Errno::EINVAL));
}

#[test]
fn a_reset_brings_the_device_back_from_everywhere_and_ends_its_streams() {
    let open = Open::new("all");
    for state in STATES {
        let stream = open.bring(state);
        open.reset();
        assert_eq!(open.state(), RUNNING, "from {state}");
        if let Some(stream) = stream {
            let ended = match state {
                RESUMING => write(&*stream, &[0]).map(|_| ()),
                _ => read(&*stream, 1).map(|_| ()),
            };
            assert_eq!(errno(ended), Some(Errno::ENODEV), "from {state}");
        }
        // The Express capability of a function whose reset bit is written.
        let stream = open.bring(state);
        let control = express_control(&open);
        open.file.write(at(7, control), &(1_u16 << 15).to_le_bytes()).expect("a reset");
        assert_eq!(open.state(), RUNNING, "from {state}");
        drop(stream);
    }
}

/// Where Device Control lies in configuration space.
fn express_control(open: &Open) -> u64 {
    let byte = |offset| {
        let mut byte = [0];
        open.file.read(at(7, offset), &mut byte).expect("configuration space");
        u64::from(byte[0])
    };
    let mut place = byte(0x34);
    while byte(place) != 0x10 {
        place = byte(place + 1);
        assert_ne!(place, 0, "there is an Express capability");
    }
    place + 8
}

#[test]
fn what_a_close_leaves_is_a_device_that_runs() {
    let open = Open::new("all");
    let stream = open.set(STOP_COPY).expect("STOP_COPY").expect("a stream");
    open.feature(SET | vfio::DEVICE_FEATURE_MIG_PRECOPY_INFOv2, &[]).expect("flags are wanted");
    open.file.close();
    assert_eq!(errno(read(&*stream, 1)), Some(Errno::ENODEV));
    let file = open.rig.device_fd(&open._group, open.rig.first().name()).expect("a device");
    let open = Open { file, ..open };
    assert_eq!(open.state(), RUNNING);
    let stream = open.set(PRE_COPY).expect("PRE_COPY").expect("a stream");
    let asked = PrecopyInfo { argsz: 24, flags: 5, ..PrecopyInfo::default() };
    let info = open.precopy_info(&*stream, asked).expect("what is left");
    assert_eq!(info.flags, 5, "nobody wants flags any more");
}

#[test]
fn an_answer_that_cannot_be_written_leaves_the_state_that_was_reached() {
    let open = Open::new("all");
    let caller = &open.rig.caller;
    let flags = SET | vfio::DEVICE_FEATURE_MIG_DEVICE_STATE;
    caller.put(READ_ONLY, DeviceFeature { argsz: 16, flags }.as_bytes());
    let before = caller.descriptors();
    for state in [STOP_COPY, RUNNING] {
        caller.put(READ_ONLY + 8, &state.to_le_bytes());
        let done = open.file.ioctl(caller, vfio::DEVICE_FEATURE, READ_ONLY);
        assert_eq!(errno(done), Some(Errno::EFAULT));
        assert_eq!(open.state(), state);
    }
    assert_eq!(caller.descriptors(), before, "no descriptor was given");
    let argument = BASE + 0x200;
    caller.put(argument, DeviceFeature { argsz: 15, flags }.as_bytes());
    let short = open.file.ioctl(caller, vfio::DEVICE_FEATURE, argument);
    assert_eq!(errno(short), Some(Errno::EINVAL));
}
