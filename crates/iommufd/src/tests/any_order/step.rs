//! What is done in one step, with the ids that calls take already chosen.

/// First byte and length of a range of IOVAs.
pub(super) type Range = (u64, u64);

/// Read and write permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rw {
    pub(super) read: bool,
    pub(super) write: bool,
}

/// Which memory: that of a client, by its number, or the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Space {
    User(usize),
    File,
}

/// What a map shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) space: Space,
    /// From the start of the space.
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What HWPT_ALLOC is told of a client's own table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// No data.
    None,
    /// VT-d's first stage.
    Vtd,
    /// A stream table entry.
    Smmu(Stage),
    /// A guest's device table entry.
    Amd(Stage),
}

/// What a client's own table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Abort,
    Bypass,
    Translate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Attach,
    Replace,
}

/// Calls on one open of `/dev/iommu`.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Destroy { id: u32 },
    IoasAlloc,
    Allow { ioas: u32, ranges: Vec<(u64, u64)> },
    Copy { src: u32, range: Range, dst: u32, at: Option<u64>, prot: Rw },
    Ranges { ioas: u32, room: u32 },
    Map { ioas: u32, source: Source, at: Option<u64>, prot: Rw },
    MapBuffer { ioas: u32, offset: u64, length: u64, at: Option<u64>, prot: Rw },
    Unmap { ioas: u32, range: Range },
    RlimitMode { set: Option<u64> },
    HugePages { ioas: u32, set: Option<u64> },
    VfioGet,
    VfioSet { ioas: u32 },
    VfioClear,
    HwptAlloc { device: u32, pt: u32, flags: u32, fault: u32, table: Table },
    HwInfo { device: u32 },
    SetTracking { hwpt: u32, on: bool },
    GetBitmap { hwpt: u32, range: Range, page_lg2: u32, keep: bool },
    Invalidate { id: u32, everything: bool },
    FaultAlloc,
    ViommuAlloc { device: u32, hwpt: u32 },
    VdeviceAlloc { viommu: u32, device: u32, virtual_id: u64 },
    ChangeProcess,
    VeventqAlloc { viommu: u32, depth: u32 },
    HwQueueAlloc { viommu: u32 },
    CompatSetIommu { v1: bool },
    CompatMap { source: Source, at: u64, prot: Rw },
    CompatUnmap { range: Range, all: bool },
    CompatInfo,
}

/// Calls on the container.
#[derive(Clone, Copy, Debug)]
pub(super) enum Type1 {
    AddGroup { group: usize },
    RemoveGroup { group: usize },
    SetIommu { v1: bool },
    Map { source: Source, at: u64, prot: Rw },
    Unmap { range: Range, all: bool },
    UnmapDirty { range: Range },
    TakeAddress { range: Range, all: bool },
    NewAddress { range: Range, process: usize },
    Info,
    Log { start: bool },
    GetLog { range: Range },
}

/// What a driver does with an access.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnAccess {
    Attach { ioas: u32 },
    Replace { ioas: u32 },
    Detach,
    Pin { range: Range, write: bool },
    Unpin { range: Range },
    Read { range: Range },
    Write { range: Range },
    Drop,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Call {
        context: usize,
        call: Call,
    },
    Type1(Type1),
    Bind {
        context: usize,
        device: usize,
    },
    Unbind {
        device: usize,
    },
    Change {
        device: usize,
        pasid: u32,
        pt: u32,
        change: Change,
    },
    Detach {
        device: usize,
        pasid: u32,
    },
    NewAccess {
        context: usize,
        pins: bool,
    },
    Access {
        access: usize,
        what: OnAccess,
    },
    Dma {
        device: usize,
        pasid: u32,
        range: Range,
        write: bool,
    },
    /// A read that a fault queue is asked about; the client maps the page or refuses it.
    AskedDma {
        device: usize,
        iova: u64,
        map: bool,
    },
    ReadEvents {
        file: usize,
    },
    /// The dma-buf is taken away, and comes back as another one or not.
    Revoke {
        renew: bool,
    },
    /// A client gets CAP_IPC_LOCK, or loses it.
    Capability {
        context: usize,
        has: bool,
    },
    CloseFile {
        file: usize,
    },
}

/// What came back beside an errno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Nothing,
    Value(u64),
    Words(Vec<u64>),
    Bytes(Vec<u8>),
    /// DMA was refused at this IOVA.
    Refused(u64),
}
