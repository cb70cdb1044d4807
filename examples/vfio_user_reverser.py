#!/usr/bin/env python3
"""A PCI device in Python, served by vfio-user: it reverses bytes in the memory of whoever drives it.

    python3 examples/vfio_user_reverser.py /tmp/reverser.sock
    ioasis run --device vfio-user,socket=/tmp/reverser.sock -- ./program

BAR 0, one page: 0x00 ADDR (64 bits), 0x08 LENGTH (32 bits, at most 4096). A store to LENGTH reads so many bytes at ADDR,
writes them back in reverse order, and sends MSI message 0. LENGTH then reads 0, or all ones if the memory cannot be reached.
"""
import errno, json, os, socket, struct, sys

HEADER = struct.Struct("<HHIII")  # id, command, size, flags, error
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION, _, GET_IRQ, SET_IRQS, READ, WRITE, DMA_READ, DMA_WRITE, RESET = range(1, 14)
REPLY, NO_REPLY, ERROR = 1, 16, 32
CONFIG, MSI = 7, 1

class Reverser:
    def __init__(self, connection):
        self.connection, self.eventfd = connection, None
        self.reset()

    def reset(self):
        self.registers, self.config = bytearray(4096), bytearray(256)
        struct.pack_into("<HHHHI", self.config, 0, 0x1234, 0x11EA, 0, 0x10, 0xFF0000 << 8)
        self.config[0x34], self.config[0x40:0x44] = 0x40, bytes([5, 0, 0x80, 0])  # MSI with 64-bit addresses

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

    def store(self, space, offset, data):
        space[offset:offset + len(data)] = data
        if space is self.registers and offset == 8:
            address, length = struct.unpack_from("<QI", self.registers)
            try:
                data = self.dma(DMA_READ, address, min(length, 4096))
                self.dma(DMA_WRITE, address, len(data), data[::-1])
                struct.pack_into("<I", self.registers, 8, 0)
            except OSError:
                struct.pack_into("<I", self.registers, 8, 0xFFFFFFFF)
            if self.eventfd is not None:
                os.write(self.eventfd, struct.pack("<Q", 1))

    def answer(self, command, body, fds):
        if command == VERSION:
            return struct.pack("<HH", 0, 1) + json.dumps({"capabilities": {"max_msg_fds": 1}}).encode() + b"\0"
        if command == GET_INFO: return struct.pack("<IIII", 16, 3, 9, 5)  # a PCI device that can be reset
        index = struct.unpack_from("<I", body, 8)[0] if len(body) >= 12 else 0
        if command == GET_REGION:
            size = {0: 4096, CONFIG: 256}.get(index, 0)
            return struct.pack("<IIIIQQ", 32, 3 if size else 0, index, 0, size, 0)
        if command == GET_IRQ: return struct.pack("<IIII", 16, 1, index, 1 if index == MSI else 0)
        if command == SET_IRQS:
            return setattr(self, "eventfd", fds[0] if fds and index == MSI else None) or b""
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

with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    try:
        Reverser(listener.accept()[0]).serve()
    except EOFError:
        os.unlink(sys.argv[1])
