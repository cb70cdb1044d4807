#!/usr/bin/env python3
"""A driver of ringsum in Python's standard library, as for any machine that has IOMMUFD: run it as CMD of a run.

    .. run --device .. -- python3 driver.py
"""
import ctypes, fcntl, glob, mmap, os, select, struct

PAGE = 4096
RING, ENTRIES, CONTROL, STATUS, TAIL, HEAD = 0x00, 0x08, 0x0C, 0x10, 0x20, 0x24
MSIX, COMMAND, MASTER = 2, 4, 4  # an interrupt index of VFIO; a register of configuration space and its bit


def ioctl(file, number, fmt, *values):
    """An ioctl of VFIO or IOMMUFD whose structure begins with its size; gives the structure back."""
    argument = bytearray(struct.pack("=I" + fmt, 4 + struct.calcsize("=" + fmt), *values))
    fcntl.ioctl(file, ord(";") << 8 | number, argument)
    return struct.unpack("=I" + fmt, argument)


def memory(length):
    """Memory, and where it is."""
    pages = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return pages, ctypes.addressof(ctypes.c_char.from_buffer(pages))


class Device:
    """The device, attached to an I/O address space."""

    def __init__(self, path):
        self.iommu, self.file = os.open("/dev/iommu", os.O_RDWR), os.open(path, os.O_RDWR)
        ioctl(self.file, 118, "IiI", 0, self.iommu, 0)  # VFIO_DEVICE_BIND_IOMMUFD
        self.ioas = ioctl(self.iommu, 0x81, "II", 0, 0)[2]  # IOMMU_IOAS_ALLOC
        ioctl(self.file, 119, "II", 0, self.ioas)  # VFIO_DEVICE_ATTACH_IOMMUFD_PT
        self.bar, self.config = self.region(0), self.region(7)
        command = struct.unpack("<H", os.pread(self.file, 2, self.config + COMMAND))[0]
        os.pwrite(self.file, struct.pack("<H", command | MASTER), self.config + COMMAND)
        self.event = os.eventfd(0)
        # VFIO_DEVICE_SET_IRQS: this eventfd is signalled for vector 0.
        ioctl(self.file, 110, "IIIIi", 1 << 2 | 1 << 5, MSIX, 0, 1, self.event)

    def region(self, index):
        return ioctl(self.file, 108, "IIIQQ", 0, index, 0, 0, 0)[5]  # VFIO_DEVICE_GET_REGION_INFO

    def map(self, address, length, iova):
        flags = 1 | 2 | 4  # at a fixed IOVA, writable, readable
        ioctl(self.iommu, 0x85, "IIIQQQ", flags, self.ioas, 0, address, length, iova)  # IOMMU_IOAS_MAP

    def load(self, offset):
        return struct.unpack("<I", os.pread(self.file, 4, self.bar + offset))[0]

    def store(self, offset, value, fmt="<I"):
        os.pwrite(self.file, struct.pack(fmt, value), self.bar + offset)


device = Device(sorted(glob.glob("/dev/vfio/devices/vfio*"))[0])
pages, address = memory(2 * PAGE)
device.map(address, len(pages), 0x100000)
ring, buffer = 0x100000, 0x100000 + PAGE
device.store(RING, ring, "<Q")
device.store(ENTRIES, 4)
device.store(CONTROL, 1)
while device.load(STATUS) == 0:
    pass
interrupts = 0
for index in range(12):
    data = os.urandom(1000)
    pages[PAGE:PAGE + len(data)] = data
    place = index % 4 * 32
    struct.pack_into("<QI20x", pages, place, buffer, len(data))
    device.store(TAIL, index + 1)
    assert select.select([device.event], [], [], 10)[0], "no interrupt"
    interrupts += os.eventfd_read(device.event)
    state, total = struct.unpack_from("<IQ", pages, place + 12)
    assert (state, total) == (1, sum(data)), (state, total)
assert device.load(HEAD) == 12
print(f"12 sums are right, {interrupts} interrupts")
