#!/usr/bin/env python3
"""A driver of edu in Python's standard library, which maps its registers: run it as CMD of a run.

    edu run --device edu -- python3 driver.py
"""
import ctypes, fcntl, glob, mmap, os, select, struct

MSI, COMMAND, MASTER = 1, 4, 4  # an interrupt index of VFIO; a register of configuration space and its bit
IOVA, BUFFER = 0x100000, 0x40000


def ioctl(file, number, fmt, *values):
    """An ioctl of VFIO or IOMMUFD whose structure begins with its size; gives the structure back."""
    argument = bytearray(struct.pack("=I" + fmt, 4 + struct.calcsize("=" + fmt), *values))
    fcntl.ioctl(file, ord(";") << 8 | number, argument)
    return struct.unpack("=I" + fmt, argument)


def region(index):
    return ioctl(device, 108, "IIIQQ", 0, index, 0, 0, 0)[5]  # VFIO_DEVICE_GET_REGION_INFO


iommu, device = os.open("/dev/iommu", os.O_RDWR), os.open(sorted(glob.glob("/dev/vfio/devices/*"))[0], os.O_RDWR)
ioctl(device, 118, "IiI", 0, iommu, 0)  # VFIO_DEVICE_BIND_IOMMUFD
ioas = ioctl(iommu, 0x81, "II", 0, 0)[2]  # IOMMU_IOAS_ALLOC
ioctl(device, 119, "II", 0, ioas)  # VFIO_DEVICE_ATTACH_IOMMUFD_PT
memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
ioctl(iommu, 0x85, "IIIQQQ", 7, ioas, 0, address, len(memory), IOVA)  # IOMMU_IOAS_MAP
command = struct.unpack("<H", os.pread(device, 2, region(7) + COMMAND))[0]
os.pwrite(device, struct.pack("<H", command | MASTER), region(7) + COMMAND)
event = os.eventfd(0)
ioctl(device, 110, "IIIIi", 1 << 2 | 1 << 5, MSI, 0, 1, event)  # VFIO_DEVICE_SET_IRQS

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
registers = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, device, region(0))
assert registers != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())


def load(offset):
    return ctypes.c_uint32.from_address(registers + offset).value


def store(offset, value):
    ctypes.c_uint32.from_address(registers + offset).value = value


def interrupt():
    """Waits for one, acknowledges all its causes, and gives them."""
    assert select.select([event], [], [], 10)[0], "no interrupt"
    os.eventfd_read(event)
    causes = load(0x24)
    store(0x64, causes)
    assert load(0x24) == 0
    return causes


store(0x04, 0x12345678)
assert load(0x04) == 0x12345678 ^ 0xFFFFFFFF
print(f"identification {load(0):#x}, alive")

store(0x20, 0x80)
store(0x08, 10)
causes = interrupt()
print(f"10! = {load(0x08)}, interrupt {causes:#x}")

store(0x60, 0x40)
assert load(0x24) == 0x40 and interrupt() == 0x40
print("raised 0x40, acknowledged")


def dma(source, destination, count, direction):
    store(0x80, source), store(0x88, destination), store(0x90, count)
    store(0x98, 1 | direction | 4)
    return interrupt()


data = os.urandom(2000)
memory[: len(data)] = data
# The bit above the mask is not sent.
causes = dma(IOVA | 1 << 28, BUFFER, len(data), 0)
memory[: len(data)] = bytes(len(data))
assert causes == dma(BUFFER, IOVA, len(data), 2) and memory[: len(data)] == data
print(f"{len(data)} bytes there and back, interrupt {causes:#x}")
