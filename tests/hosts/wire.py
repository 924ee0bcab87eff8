"""Hosts apart: network namespaces joined by a wire in user space, which delays, loses and refuses packets.

It does what `tc netem` does, for kernels that are built without it. Each host has a TUN device; a packet that is
written to one is read here, kept for a while, and written to the device of its receiver.
"""

import contextlib
import fcntl
import heapq
import os
import random
import struct
import subprocess
import threading
import time

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 9000
_DESTINATION = slice(16, 20)  # of an IPv4 packet


def ip(*words: str) -> None:
    """Runs `ip`."""
    subprocess.run(["ip", *words], check=True)


class Wire:
    """Hosts that reach each other over a slow and lossy network.

    Args:
        delay: Seconds that a packet takes, on average; it varies by a quarter, so that packets overtake each other.
        loss: The share of packets that are lost.

    Attributes:
        lost: Number of packets that were lost by chance.
        refused: Number of packets from or to a host that was cut off.
    """

    def __init__(self, delay: float, loss: float) -> None:
        self._delay, self._loss = delay, loss
        self._random = random.Random(0)
        self._hosts: dict[bytes, int] = {}
        self._names: list[str] = []
        self._cut_off: set[bytes] = set()
        self._changed = threading.Condition()
        self._flying: list[tuple[float, int, int, bytes]] = []
        self._count = self.lost = self.refused = 0
        threading.Thread(target=self._deliver, daemon=True).start()

    def add(self, name: str | None) -> str:
        """Adds a host in a new namespace, or for None this process's own; returns its address."""
        number = len(self._hosts) + 1
        address, device = f"10.77.0.{number}", f"latentq{number}"
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
        place: tuple[str, ...] = ()
        if name is not None:
            ip("netns", "add", name)
            self._names.append(name)
            ip("link", "set", device, "netns", name)
            place = ("-n", name)
            ip(*place, "link", "set", "lo", "up")
        ip(*place, "addr", "add", f"{address}/24", "dev", device)
        ip(*place, "link", "set", device, "mtu", str(_MTU), "up")
        packed = bytes(map(int, address.split(".")))
        with self._changed:
            self._hosts[packed] = descriptor
        threading.Thread(target=self._read, args=(packed, descriptor), daemon=True).start()
        return address

    def cut_off(self, address: str) -> None:
        """Loses all packets from and to a host from now on."""
        self._cut_off.add(bytes(map(int, address.split("."))))

    def heal(self, address: str) -> None:
        """Ends `cut_off`."""
        self._cut_off.remove(bytes(map(int, address.split("."))))

    def close(self) -> None:
        """Removes the namespaces."""
        for name in self._names:
            ip("netns", "delete", name)
        for descriptor in self._hosts.values():
            os.close(descriptor)

    def _read(self, sender: bytes, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # the wire was closed
            while True:
                packet = os.read(descriptor, _MTU)
                receiver = packet[_DESTINATION]
                if packet[0] >> 4 != 4 or receiver not in self._hosts:
                    continue
                with self._changed:
                    if sender in self._cut_off or receiver in self._cut_off:
                        self.refused += 1
                    elif self._random.random() < self._loss:
                        self.lost += 1
                    else:
                        arrival = time.monotonic() + self._delay * self._random.uniform(0.75, 1.25)
                        self._count += 1
                        heapq.heappush(self._flying, (arrival, self._count, self._hosts[receiver], packet))
                        self._changed.notify()

    def _deliver(self) -> None:
        while True:
            with self._changed:
                while not self._flying or (left := self._flying[0][0] - time.monotonic()) > 0:
                    self._changed.wait(left if self._flying else None)
                _, _, descriptor, packet = heapq.heappop(self._flying)
            with contextlib.suppress(OSError):
                os.write(descriptor, packet)
