#!/usr/bin/env python3
"""The device ringsum in Python's standard library: it adds up bytes of buffers that a ring in memory lists (1234:11eb).

    python3 ringsum.py ringsum.sock & sleep 1
    ioasis run --device vfio-user,socket=ringsum.sock -- python3 driver.py

Registers in BAR 0: 0x00 RING (64 bits), 0x08 ENTRIES, 0x0c CONTROL (1 runs), 0x10 STATUS (1 runs, 3 halted), 0x18 FAULT
(64 bits), 0x20 TAIL (descriptors given, counts on), 0x24 HEAD (done). The MSI-X table is at 0x1000. A descriptor has 32 bytes:
address (64 bits), length (32 bits, up to 1 MiB), then what the device writes: state (1 done, 2 failed) and sum (64 bits).
"""
import errno, json, os, socket, struct, sys

HEADER = struct.Struct("<HHIII")  # id, command, size, flags, error
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION, _, GET_IRQ, SET_IRQS, READ, WRITE, DMA_READ, DMA_WRITE, RESET = range(1, 14)
REPLY, NO_REPLY, ERROR = 1, 16, 32
CONFIG, MSIX, CHUNK = 7, 2, 1 << 16  # a region, an interrupt index, and how much one message asks for
RING, ENTRIES, CONTROL, STATUS, FAULT, TAIL, HEAD = 0x00, 0x08, 0x0C, 0x10, 0x18, 0x20, 0x24

class Device:
    def __init__(self, connection):
        self.connection, self.eventfd = connection, None
        self.reset()

    def reset(self):
        self.registers, self.config = bytearray(0x2000), bytearray(256)
        struct.pack_into("<HHHHI", self.config, 0, 0x1234, 0x11EB, 0, 0x10, 0x120000 << 8)
        self.config[0x34] = 0x40  # one capability: MSI-X with one vector, table and pending bits in BAR 0
        struct.pack_into("<BBHII", self.config, 0x40, 0x11, 0, 0, 0x1000, 0x1800)

    def load(self, offset, fmt="<I"): return struct.unpack_from(fmt, self.registers, offset)[0]
    def show(self, offset, value, fmt="<I"): struct.pack_into(fmt, self.registers, offset, value)

    def receive(self):
        data, fds, _, _ = socket.recv_fds(self.connection, HEADER.size, 16)
        if not data:
            raise EOFError
        while len(data) < HEADER.size or len(data) < HEADER.unpack(data[:16])[2]:
            size = HEADER.unpack(data[:16])[2] if len(data) >= HEADER.size else HEADER.size
            data += self.connection.recv(size - len(data)) or sys.exit("half a message")
        return HEADER.unpack(data[:16]), data[16:], fds

    def send(self, number, command, flags, body=b"", error=0):
        self.connection.sendall(HEADER.pack(number, command, HEADER.size + len(body), flags, error) + body)

    def dma(self, command, address, length, data=b""):
        self.send(1, command, 0, struct.pack("<QQ", address, length) + data)
        header, body, _ = self.receive()
        if header[3] & ERROR:
            raise OSError(header[4], "the memory cannot be reached")
        return body[16:]

    def sum(self, address, length):
        if length > 1 << 20:
            return 2, 0
        try:
            pieces = range(0, length, CHUNK)
            return 1, sum(sum(self.dma(DMA_READ, address + at, min(CHUNK, length - at))) for at in pieces)
        except OSError:
            return 2, 0

    def work(self):
        entries, place = self.load(ENTRIES), 0
        try:
            if not 2 <= entries <= 256 or entries & entries - 1:
                raise OSError("no such ring")
            while 0 < (self.load(TAIL) - self.load(HEAD)) % 2**32 <= entries:
                place = (self.load(RING, "<Q") + self.load(HEAD) % entries * 32) % 2**64
                answer = self.sum(*struct.unpack_from("<QI", self.dma(DMA_READ, place, 32)))
                self.dma(DMA_WRITE, place + 12, 12, struct.pack("<IQ", *answer))
                self.show(HEAD, (self.load(HEAD) + 1) % 2**32)
                self.interrupt()
        except OSError:
            self.show(FAULT, place, "<Q")
            self.show(STATUS, 3)
            self.interrupt()

    def interrupt(self):
        if self.eventfd is not None:
            os.write(self.eventfd, struct.pack("<Q", 1))

    def store(self, space, offset, data):
        space[offset:offset + len(data)] = data
        if space is self.registers and offset == CONTROL:
            self.show(STATUS, self.load(CONTROL))
            self.show(TAIL, 0), self.show(HEAD, 0)
        if space is self.registers and offset in (CONTROL, TAIL) and self.load(STATUS) == 1:
            self.work()

    def answer(self, command, body, fds):
        if command == VERSION:
            return struct.pack("<HH", 0, 1) + json.dumps({"capabilities": {"max_msg_fds": 1}}).encode() + b"\0"
        if command == GET_INFO: return struct.pack("<IIII", 16, 3, 9, 5)  # a PCI device that can be reset
        index = struct.unpack_from("<I", body, 8)[0] if len(body) >= 12 else 0
        if command == GET_REGION:
            size = {0: 0x2000, CONFIG: 256}.get(index, 0)
            return struct.pack("<IIIIQQ", 32, 3 if size else 0, index, 0, size, 0)
        if command == GET_IRQ: return struct.pack("<IIII", 16, 1, index, 1 if index == MSIX else 0)
        if command == SET_IRQS:
            return setattr(self, "eventfd", fds[0] if fds and index == MSIX else None) or b""
        if command in (READ, WRITE):
            offset, region, count = struct.unpack_from("<QII", body)
            space = self.config if region == CONFIG else self.registers
            if region not in (0, CONFIG) or offset + count > len(space):
                raise OSError(errno.EINVAL, "outside the region")
            if command == WRITE:
                self.store(space, offset, body[16:16 + count])
            return body[:16] + (bytes(space[offset:offset + count]) if command == READ else b"")
        if command == RESET: return self.reset() or b""
        if command == DMA_MAP: return b""  # memory is asked for: no list of it is needed
        if command == DMA_UNMAP: return body
        raise OSError(errno.EOPNOTSUPP, "not here")

    def serve(self):
        while True:
            (number, command, _, flags, _), body, fds = self.receive()
            try:
                body, error = self.answer(command, body, fds), 0
            except OSError as refused:
                body, error = b"", refused.errno
            if not flags & NO_REPLY:
                self.send(number, command, REPLY | (ERROR if error else 0), body, error)

if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])  # of a server that was ended
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    try:
        Device(listener.accept()[0]).serve()
    except EOFError:
        os.unlink(sys.argv[1])
