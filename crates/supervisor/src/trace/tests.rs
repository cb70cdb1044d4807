use std::fs;
use std::path::PathBuf;

use ioasis_uapi::{Errno, Error, Result, iommufd, vfio};

use super::*;

/// Where the argument lies in the client of these tests.
const AT: u64 = 0x7ffc_0000_1000;

/// A client's memory from [`AT`].
struct Client(Vec<u8>);

impl Client {
    fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        let bytes = address
            .checked_sub(AT)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| self.0.get(at..)?.get(..buf.len()));
        bytes.map(|bytes| buf.copy_from_slice(bytes)).is_some()
    }
}

/// What `write` makes a trace write.
fn traced(format: Format, write: impl FnOnce(&Trace)) -> String {
    let name = format!("ioasis-trace-{}-{:?}", std::process::id(), std::thread::current().id());
    let path: PathBuf = std::env::temp_dir().join(name);
    let trace = Trace::file(&path, format).unwrap();
    write(&trace);
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    text
}

const fn file(kind: Kind) -> File<'static> {
    match kind {
        Kind::Iommufd => File { fd: 4, path: "/dev/iommu", kind },
        Kind::Container | Kind::SpaprContainer => File { fd: 5, path: "/dev/vfio/vfio", kind },
        Kind::Group => File { fd: 6, path: "/dev/vfio/7", kind },
        Kind::Device => File { fd: 9, path: "0000:01:00.0", kind },
        Kind::FaultQueue => File { fd: 70, path: "fault queue 3", kind },
        Kind::Kvm => File { fd: 12, path: "anon_inode:kvm-vfio", kind },
        Kind::EventQueue => File { fd: 71, path: "veventq 4", kind },
    }
}

/// The line of an ioctl whose argument is `before` and becomes `after`, without its "[pid 12] ".
fn ioctl(kind: Kind, request: u32, before: &[u8], after: &[u8], result: Result<i64>) -> String {
    let line = ioctl_as(Format::Text, kind, request, before, after, result);
    line.strip_prefix("[pid 12] ").unwrap().trim_end().to_owned()
}

fn ioctl_as(
    format: Format,
    kind: Kind,
    request: u32,
    before: &[u8],
    after: &[u8],
    result: Result<i64>,
) -> String {
    traced(format, |trace| {
        let client = Client(before.to_vec());
        let begun = trace.begin(file(kind), request, AT, &|address, buf| client.read(address, buf));
        let client = Client(after.to_vec());
        trace.end(12, file(kind), &begun, result, &|address, buf| client.read(address, buf));
    })
}

/// Little-endian words of 4 bytes, or of 8 where a number does not fit.
fn words(words: &[(u64, usize)]) -> Vec<u8> {
    words.iter().flat_map(|&(word, size)| word.to_le_bytes()[..size].to_vec()).collect()
}

fn map_dma(vaddr: u64) -> Vec<u8> {
    words(&[(32, 4), (3, 4), (vaddr, 8), (0, 8), (0x1000, 8)])
}

#[test]
fn a_map_shows_flags_by_name_and_addresses_in_hexadecimal() {
    let map = map_dma(0x7f12_0000_0000);
    assert_eq!(
        ioctl(Kind::Container, vfio::IOMMU_MAP_DMA, &map, &map, Ok(0)),
        "ioctl(5</dev/vfio/vfio>, VFIO_IOMMU_MAP_DMA, {argsz=32, flags=READ|WRITE, vaddr=0x7f1200000000, iova=0x0, \
         size=0x1000}) = 0"
    );
}

#[test]
fn a_failure_says_why_and_at_which_value() {
    let map = map_dma(0x7f12_0000_0800);
    let error = Error::at(Errno::EINVAL, "vaddr is not page aligned", 0x7f12_0000_0800);
    let line = ioctl(Kind::Container, vfio::IOMMU_MAP_DMA, &map, &map, Err(error));
    assert!(line.ends_with("}) = -1 EINVAL (vaddr is not page aligned: 0x7f1200000800)"), "{line}");
    let error = Error::at(Errno::ENOENT, "no such object", 7);
    let destroy = words(&[(8, 4), (7, 4)]);
    assert_eq!(
        ioctl(Kind::Iommufd, iommufd::DESTROY, &destroy, &destroy, Err(error)),
        "ioctl(4</dev/iommu>, IOMMU_DESTROY, {size=8, id=7}) = -1 ENOENT (no such object: 7)"
    );
}

#[test]
fn what_a_call_writes_is_shown_when_it_succeeds() {
    let before = words(&[(12, 4), (0, 4), (0xdead, 4)]);
    let after = words(&[(12, 4), (0, 4), (1, 4)]);
    assert_eq!(
        ioctl(Kind::Iommufd, iommufd::IOAS_ALLOC, &before, &after, Ok(0)),
        "ioctl(4</dev/iommu>, IOMMU_IOAS_ALLOC, {size=12, flags=0, out_ioas_id=1}) = 0"
    );
    let error = Error::new(Errno::EOPNOTSUPP, "unknown flag");
    assert_eq!(
        ioctl(Kind::Iommufd, iommufd::IOAS_ALLOC, &before, &before, Err(error)),
        "ioctl(4</dev/iommu>, IOMMU_IOAS_ALLOC, {size=12, flags=0}) = -1 EOPNOTSUPP (unknown flag)"
    );
}

#[test]
fn what_a_call_changes_is_shown_before_and_after() {
    let map =
        |iova| words(&[(40, 4), (6, 4), (1, 4), (0, 4), (0x7000_0000, 8), (0x2000, 8), (iova, 8)]);
    assert_eq!(
        ioctl(Kind::Iommufd, iommufd::IOAS_MAP, &map(0), &map(0x1000), Ok(0)),
        "ioctl(4</dev/iommu>, IOMMU_IOAS_MAP, {size=40, flags=WRITEABLE|READABLE, ioas_id=1, user_va=0x70000000, \
         length=0x2000, iova=0x0=>0x1000}) = 0"
    );
    let unmap = |size| words(&[(24, 4), (2, 4), (0, 8), (size, 8)]);
    assert_eq!(
        ioctl(Kind::Container, vfio::IOMMU_UNMAP_DMA, &unmap(0), &unmap(0x4000), Ok(0)),
        "ioctl(5</dev/vfio/vfio>, VFIO_IOMMU_UNMAP_DMA, {argsz=24, flags=ALL, iova=0x0, size=0x0=>0x4000}) = 0"
    );
}

#[test]
fn reserved_fields_and_unknown_flags_show_only_when_they_are_set() {
    let mut map = words(&[(40, 4), (0x86, 4), (1, 4), (5, 4), (0, 8), (0x1000, 8), (0, 8)]);
    map.extend([0; 8]);
    let error = Error::new(Errno::EOPNOTSUPP, "unknown flag");
    let line = ioctl(Kind::Iommufd, iommufd::IOAS_MAP, &map, &map, Err(error));
    assert!(
        line.contains("flags=WRITEABLE|READABLE|0x80, ioas_id=1, __reserved=0x5, user_va=0x0"),
        "{line}"
    );
}

#[test]
fn arrays_behind_pointers_are_followed() {
    let ranges = |count: u64| {
        let mut bytes = words(&[(32, 4), (1, 4), (count, 4), (0, 4), (AT + 32, 8), (0x1000, 8)]);
        bytes.extend(words(&[(0, 8), (0xfedf_ffff, 8), (0xfef0_0000, 8), (u64::MAX, 8)]));
        bytes
    };
    assert_eq!(
        ioctl(Kind::Iommufd, iommufd::IOAS_IOVA_RANGES, &ranges(2), &ranges(2), Ok(0)),
        "ioctl(4</dev/iommu>, IOMMU_IOAS_IOVA_RANGES, {size=32, ioas_id=1, num_iovas=2, out_iova_alignment=0x1000, \
         allowed_iovas=[[0x0, 0xfedfffff], [0xfef00000, 0xffffffffffffffff]]}) = 0"
    );
    let error = Error::new(Errno::EMSGSIZE, "the array is too small");
    let line = ioctl(Kind::Iommufd, iommufd::IOAS_IOVA_RANGES, &ranges(0), &ranges(2), Err(error));
    assert!(line.contains("num_iovas=0=>2, allowed_iovas=0x7ffc00001020})"), "{line}");
}

#[test]
fn capability_chains_are_decoded() {
    let mut info = words(&[(80, 4), (0xf, 4), (0, 4), (32, 4), (0x4000, 8), (1 << 40, 8)]);
    info.extend(words(&[(1, 2), (1, 2), (64, 4), (1, 4), (0, 4), (0x1000, 8), (0x3000, 8)]));
    info.extend(words(&[(3, 2), (1, 2), (0, 4), (0, 8)]));
    let before = words(&[(80, 4), (0, 4), (0, 4), (0, 4), (0, 8), (0, 8)]);
    let before: Vec<u8> = before.into_iter().chain([0; 48]).collect();
    assert_eq!(
        ioctl(Kind::Device, vfio::DEVICE_GET_REGION_INFO, &before, &info, Ok(0)),
        "ioctl(9<0000:01:00.0>, VFIO_DEVICE_GET_REGION_INFO, {argsz=80, index=BAR0, flags=READ|WRITE|MMAP|CAPS, \
         cap_offset=32, size=0x4000, offset=0x10000000000, caps=[{SPARSE_MMAP=[0x1000+0x3000]}, MSIX_MAPPABLE]}) = 0"
    );
}

#[test]
fn a_capability_chain_in_a_circle_ends() {
    let mut info = words(&[(48, 4), (0xf, 4), (0, 4), (32, 4), (0x4000, 8), (0, 8)]);
    info.extend(words(&[(3, 2), (1, 2), (32, 4), (0, 8)]));
    let line = ioctl(Kind::Device, vfio::DEVICE_GET_REGION_INFO, &info, &info, Ok(0));
    assert!(line.ends_with("MSIX_MAPPABLE, ...]}) = 0"), "{line}");
}

#[test]
fn interrupts_show_their_eventfds() {
    let set =
        words(&[(32, 4), (0x24, 4), (2, 4), (0, 4), (3, 4), (11, 4), (12, 4), (0xffff_ffff, 4)]);
    assert_eq!(
        ioctl(Kind::Device, vfio::DEVICE_SET_IRQS, &set, &set, Ok(0)),
        "ioctl(9<0000:01:00.0>, VFIO_DEVICE_SET_IRQS, {argsz=32, flags=DATA_EVENTFD|ACTION_TRIGGER, index=MSIX, \
         start=0, count=3, data=[11, 12, -1]}) = 0"
    );
    let set = words(&[(22, 4), (0x22, 4), (1, 4), (0, 4), (2, 4), (1, 1), (0, 1)]);
    let line = ioctl(Kind::Device, vfio::DEVICE_SET_IRQS, &set, &set, Ok(0));
    assert!(
        line.contains("flags=DATA_BOOL|ACTION_TRIGGER, index=MSI, start=0, count=2, data=[1, 0]"),
        "{line}"
    );
}

#[test]
fn features_show_operation_name_and_struct() {
    let probe = words(&[(8, 4), (0x5_0001, 4)]);
    let error = Error::new(Errno::ENOTTY, "the device has no such feature");
    assert_eq!(
        ioctl(Kind::Device, vfio::DEVICE_FEATURE, &probe, &probe, Err(error)),
        "ioctl(9<0000:01:00.0>, VFIO_DEVICE_FEATURE, {argsz=8, flags=GET|PROBE|MIGRATION}) = -1 ENOTTY (the device \
         has no such feature)"
    );
    let set = |fd| words(&[(16, 4), (0x2_0002, 4), (3, 4), (fd, 4)]);
    let line = ioctl(Kind::Device, vfio::DEVICE_FEATURE, &set(0), &set(21), Ok(0));
    assert!(
        line.contains("flags=SET|MIG_DEVICE_STATE, data={device_state=STOP_COPY, data_fd=21}"),
        "{line}"
    );
}

#[test]
fn arguments_that_are_no_struct_have_their_own_form() {
    assert_eq!(
        ioctl(Kind::Group, vfio::GROUP_SET_CONTAINER, &words(&[(5, 4)]), &[], Ok(0)),
        "ioctl(6</dev/vfio/7>, VFIO_GROUP_SET_CONTAINER, [5]) = 0"
    );
    let mut name = b"0000:01:00.0\0".to_vec();
    name.extend([0; 16]);
    assert_eq!(
        ioctl(Kind::Group, vfio::GROUP_GET_DEVICE_FD, &name, &name, Ok(9)),
        "ioctl(6</dev/vfio/7>, VFIO_GROUP_GET_DEVICE_FD, \"0000:01:00.0\") = 9"
    );
    assert_eq!(
        ioctl(Kind::Container, vfio::GET_API_VERSION, &[], &[], Ok(0)),
        "ioctl(5</dev/vfio/vfio>, VFIO_GET_API_VERSION) = 0"
    );
    let line = traced(Format::Text, |trace| {
        let begun = trace.begin(file(Kind::Container), vfio::CHECK_EXTENSION, 3, &|_, _| false);
        trace.end(12, file(Kind::Container), &begun, Ok(1), &|_, _| false);
    });
    assert_eq!(
        line,
        "[pid 12] ioctl(5</dev/vfio/vfio>, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) = 1\n"
    );
}

#[test]
fn one_number_is_named_by_the_file_it_is_used_on() {
    let name = |kind, request| {
        let line = ioctl(kind, request, &[], &[], Ok(0));
        let (_, call) = line.split_once(", ").unwrap();
        call.trim_end_matches(", 0x7ffc00001000) = 0").to_owned()
    };
    assert_eq!(name(Kind::Container, 0x3b71), "VFIO_IOMMU_MAP_DMA");
    assert_eq!(name(Kind::Container, 0x3b70), "VFIO_IOMMU_GET_INFO");
    assert_eq!(name(Kind::SpaprContainer, 0x3b70), "VFIO_IOMMU_SPAPR_TCE_GET_INFO");
    assert_eq!(name(Kind::SpaprContainer, 0x3b75), "VFIO_IOMMU_SPAPR_REGISTER_MEMORY");
    assert_eq!(name(Kind::SpaprContainer, 0x3b71), "VFIO_IOMMU_MAP_DMA");
    assert_eq!(name(Kind::Iommufd, 0x3b71), "VFIO_IOMMU_MAP_DMA");
    assert_eq!(name(Kind::Device, 0x3b71), "VFIO_DEVICE_PCI_HOT_RESET");
    assert_eq!(name(Kind::Group, 0x3b71), "_IO(';', 0x71)");
    assert_eq!(name(Kind::Iommufd, 0x3bff), "_IO(';', 0xff)");
}

#[test]
fn memory_that_cannot_be_read_leaves_the_address() {
    let error = Error::new(Errno::EFAULT, "the argument cannot be read");
    assert_eq!(
        ioctl(Kind::Container, vfio::IOMMU_MAP_DMA, &[], &[], Err(error)),
        "ioctl(5</dev/vfio/vfio>, VFIO_IOMMU_MAP_DMA, 0x7ffc00001000) = -1 EFAULT (the argument cannot be read)"
    );
    // A size beyond what is there: the size is worth showing, and nothing else is made up.
    let long = words(&[(0xffff_ffff, 4), (3, 4)]);
    let line = ioctl(Kind::Container, vfio::IOMMU_MAP_DMA, &long, &long, Err(error));
    assert!(line.contains("VFIO_IOMMU_MAP_DMA, {argsz=4294967295})"), "{line}");
}

#[test]
fn no_argument_bytes_can_upset_the_trace() {
    let kinds = [Kind::Iommufd, Kind::Container, Kind::Group, Kind::Device];
    let mut seed = 1_u64;
    for round in 0..20_000_u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        let kind = kinds[usize::try_from(seed >> 62).unwrap()];
        let rows: Vec<u32> = match kind {
            Kind::Iommufd => super::iommufd::TABLE.iter().map(|row| row.request).collect(),
            Kind::Container => super::vfio::CONTAINER.iter().map(|row| row.request).collect(),
            Kind::Group => super::vfio::GROUP.iter().map(|row| row.request).collect(),
            _ => super::vfio::DEVICE.iter().map(|row| row.request).collect(),
        };
        let request = rows[usize::try_from((seed >> 32) % rows.len() as u64).unwrap()];
        let row = find(kind, request).unwrap();
        let mut noise = seed;
        let mut bytes: Vec<u8> = (0..usize::try_from(seed >> 40 & 0x7f).unwrap())
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                noise.to_le_bytes()[7] & if noise & 1 == 0 { 0xff } else { 0x03 }
            })
            .collect();
        if let Some(size) = bytes.first_chunk_mut::<4>() {
            *size = u32::from(noise.to_le_bytes()[5]).to_le_bytes();
        }
        let client = Client(bytes);
        let memory = |address: u64, buf: &mut [u8]| client.read(address, buf);
        let before = read(row, AT, &memory);
        let argument = Argument { before: &before, after: &before, good: round % 2 == 0 };
        if let Some(value) = show(row, AT, argument, &memory) {
            let mut line = String::new();
            value.text(&mut line);
            value.json(&mut line);
            assert!(line.len() < 64 << 10);
        }
    }
}

#[test]
fn opens_accesses_and_maps_have_lines_of_their_own() {
    let text = traced(Format::Text, |trace| {
        trace.open(7, "/dev/vfio/vfio", 0o2_000_002, Ok(5));
        trace.open(7, "/dev/vfio/7", 2, Err(Error::new(Errno::EBUSY, "the group is open already")));
        let access =
            |way, region, offset, bytes, length| Access { way, region, offset, bytes, length };
        let device = file(Kind::Device);
        trace.access(7, device, &access(Way::Write, 7, 4, &[6, 1], 2), Ok(2));
        trace.access(7, device, &access(Way::Read, 0, 0x1c, &[1, 0, 0, 0], 4), Ok(4));
        trace.access(7, device, &access(Way::Read, 7, 0, &[1, 2, 3], 3), Ok(3));
        let beyond = Error::at(Errno::EINVAL, "beyond the region", 0x9000);
        trace.access(7, device, &access(Way::Read, 9, 0x9000, &[], 4), Err(beyond));
        trace.mmap(
            7,
            device,
            Map { region: 0, offset: 0x1000, length: 0x1000, protection: 3, flags: 1 },
            Ok(()),
        );
        trace.other(
            7,
            "openat",
            "/sys/bus/pci/drivers/vfio-pci/bind",
            Err(Error::new(Errno::EACCES, "read-only here")),
        );
    });
    assert_eq!(
        text,
        "[pid 7] openat(\"/dev/vfio/vfio\", O_RDWR|O_CLOEXEC) = 5\n\
         [pid 7] openat(\"/dev/vfio/7\", O_RDWR) = -1 EBUSY (the group is open already)\n\
         [pid 7] pwrite(9<0000:01:00.0>, CONFIG+0x4 COMMAND, 0x0106, 2) = 2\n\
         [pid 7] pread(9<0000:01:00.0>, BAR0+0x1c, 0x00000001, 4) = 4\n\
         [pid 7] pread(9<0000:01:00.0>, CONFIG+0x0 VENDOR_ID, [01 02 03], 3) = 3\n\
         [pid 7] pread(9<0000:01:00.0>, region 9+0x9000, ..., 4) = -1 EINVAL (beyond the region: 0x9000)\n\
         [pid 7] mmap(9<0000:01:00.0>, BAR0+0x1000, 0x1000, PROT_READ|PROT_WRITE, MAP_SHARED) = ?\n\
         [pid 7] openat(\"/sys/bus/pci/drivers/vfio-pci/bind\") = -1 EACCES (read-only here)\n"
    );
}

#[test]
fn faults_and_their_responses_are_decoded() {
    let fault =
        words(&[(2, 4), (1, 4), (0, 4), (5, 4), (3, 4), (0, 4), (0x1_0000, 8), (0, 4), (9, 4)]);
    let response = words(&[(9, 4), (1, 4)]);
    let event = words(&[(0, 4), (7, 4), (0, 8), (0, 8)]);
    let text = traced(Format::Text, |trace| {
        trace.queue(7, file(Kind::FaultQueue), Way::Read, &fault, Ok(40));
        trace.queue(7, file(Kind::FaultQueue), Way::Read, &[], Ok(0));
        trace.queue(7, file(Kind::FaultQueue), Way::Write, &response, Ok(8));
        trace.queue(7, file(Kind::EventQueue), Way::Read, &event, Ok(24));
    });
    assert_eq!(
        text,
        "[pid 7] read(70<fault queue 3>, [{flags=LAST_PAGE, dev_id=1, pasid=0, grpid=5, perm=READ|WRITE, \
         addr=0x10000, length=0, cookie=9}], 40) = 40\n\
         [pid 7] read(70<fault queue 3>, [], 0) = 0\n\
         [pid 7] write(70<fault queue 3>, [{cookie=9, code=INVALID}], 8) = 8\n\
         [pid 7] read(71<veventq 4>, [{flags=0, sequence=7}], 24) = 24\n"
    );
}

const FAULT: Event = Event::DmaFault {
    way: Way::Write,
    pasid: 0,
    iova: 0x1000,
    why: "nothing is mapped",
    nearest: None,
    unmapped: None,
};

const UNMASTERED: Refusal =
    Refusal::Dma { way: ioasis_pci::Way::Read, iova: 0x1000, closed: ioasis_pci::Closed::Master };

#[test]
fn what_devices_do_by_themselves_is_told() {
    let text = traced(Format::Text, |trace| {
        trace.event("0000:01:00.0", &Event::Interrupt { kind: Interrupt::Msix, vector: 1 });
        trace.event("0000:01:00.0", &Event::Interrupt { kind: Interrupt::Intx, vector: 0 });
        trace.event("0000:01:00.0", &FAULT);
        let nearest = Some((0x2000, 0x2fff));
        let (pasid, unmapped) = (3, Some((0x1000, 0x1fff, 7)));
        let Event::DmaFault { way, iova, why, .. } = FAULT else { unreachable!() };
        let fault = Event::DmaFault { way, pasid, iova, why, nearest, unmapped };
        trace.event("0000:01:00.0", &fault);
        trace.event("0000:01:00.0", &Event::Refused(UNMASTERED));
        trace.event("0000:01:00.0", &Event::Reset);
    });
    assert_eq!(
        text,
        "[0000:01:00.0] interrupt MSI-X 1\n\
         [0000:01:00.0] interrupt INTx\n\
         [0000:01:00.0] DMA write fault at iova 0x1000: nothing is mapped\n\
         [0000:01:00.0] DMA write fault at iova 0x1000 of PASID 3: nothing is mapped; 0x1000-0x1fff was unmapped by \
         pid 7; the nearest mapping is 0x2000-0x2fff\n\
         [0000:01:00.0] DMA read at iova 0x1000 refused: bus mastering is off; set bit 2 of COMMAND\n\
         [0000:01:00.0] reset\n"
    );
}

#[test]
fn a_step_that_failed_on_purpose_is_told() {
    let written = |format| traced(format, |trace| trace.injected(12, 7, "a \"page\""));
    assert_eq!(written(Format::Text), "[pid 12] fail-nth 7: a \"page\" could not be had\n");
    assert_eq!(written(Format::Json), "{\"pid\":12,\"fail_nth\":7,\"step\":\"a \\\"page\\\"\"}\n");
}

#[test]
fn json_has_one_object_a_line() {
    let map = map_dma(0x7f12_0000_0800);
    let error = Error::at(Errno::EINVAL, "vaddr is not page aligned", 0x7f12_0000_0800);
    assert_eq!(
        ioctl_as(Format::Json, Kind::Container, vfio::IOMMU_MAP_DMA, &map, &map, Err(error)),
        "{\"pid\":12,\"call\":\"ioctl\",\"fd\":\"5</dev/vfio/vfio>\",\"request\":\"VFIO_IOMMU_MAP_DMA\",\"arg\":\
         {\"argsz\":32,\"flags\":[\"READ\",\"WRITE\"],\"vaddr\":\"0x7f1200000800\",\"iova\":\"0x0\",\
         \"size\":\"0x1000\"},\"errno\":\"EINVAL\",\"why\":\"vaddr is not page aligned: 0x7f1200000800\"}\n"
    );
    let text = traced(Format::Json, |trace| {
        trace.open(7, "/dev/\"vfio\"\n", 0, Ok(3));
        trace.event("0000:01:00.0", &FAULT);
        trace.event("0000:01:00.0", &Event::Refused(UNMASTERED));
    });
    assert_eq!(
        text,
        "{\"pid\":7,\"call\":\"openat\",\"path\":\"/dev/\\\"vfio\\\"\\u000a\",\"flags\":[\"O_RDONLY\"],\"result\":3}\n\
         {\"device\":\"0000:01:00.0\",\"fault\":\"write\",\"iova\":\"0x1000\",\"why\":\"nothing is mapped\"}\n\
         {\"device\":\"0000:01:00.0\",\"refused\":\"DMA read at iova 0x1000\",\"why\":\"bus mastering is off\",\
         \"remedy\":\"set bit 2 of COMMAND\"}\n"
    );
}
