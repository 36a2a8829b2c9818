"""Processes in the hosts of a lab: what they print, pings, captures, and waiting for them. Standard library
only."""

import dataclasses
import pathlib
import re
import signal
import subprocess
import time

import packets


def await_(condition, timeout=20.0, what="condition", interval=0.03):
    """Polls until `condition()` is true and returns what it returned; fails after `timeout` s.

    The last look begins after that time. The longer it has waited, the less often it looks: in an
    emulated machine looking is what there is most to do."""
    started = time.monotonic()
    while True:
        waited = time.monotonic() - started
        if result := condition():
            return result
        if waited > timeout:
            raise AssertionError(f"after {timeout} s still no {what} (last: {result!r})")
        time.sleep(max(interval, min(waited / 10, 0.5)))


@dataclasses.dataclass(frozen=True)
class Pings:
    sent: int
    received: int

    @property
    def lost(self):
        return self.sent - self.received


def pings_of(text):
    found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    if not text.strip():
        return Pings(1, 0)  # it was not let out
    if not found:
        raise AssertionError(f"ping said: {text}")
    return Pings(int(found[1]), int(found[2]))


def resident(pid):
    """KiB of memory that a process has in use."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def processor_time(pid):
    """Nanoseconds on the CPU so far, all threads: in a machine with --icount, instructions."""
    threads = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)


class Process:
    """A process in a host, with what it prints in a file."""

    def __init__(self, host, argv, log):
        self.argv = [str(word) for word in argv]
        self.log = log
        with open(log, "wb") as out:
            # `ip netns exec` replaces itself with the program: the pid is the program's.
            self._popen = subprocess.Popen(
                host.inside(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def output(self):
        return self.log.read_text(errors="replace")

    def running(self):
        return self._popen.poll() is None

    def send_signal(self, number):
        self._popen.send_signal(number)

    def wait(self, timeout=20):
        """The exit code; negative for a signal."""
        return self._popen.wait(timeout)

    def stop(self, number=signal.SIGTERM, timeout=20):
        """Sends the signal and returns the exit code; kills what does not obey, and fails."""
        if self.running():
            self.send_signal(number)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.argv} ignored signal {number}: {self.output()}") from None

    def kill(self):
        if self.running():
            self._popen.kill()
        return self._popen.wait()

    def await_output(self, pattern, timeout=20):
        """Waits until the output has a match for the regular expression, and returns it."""

        def found():
            if match := re.search(pattern, self.output()):
                return match
            if not self.running():
                # What it printed last came before its end: look once more.
                if match := re.search(pattern, self.output()):
                    return match
                raise AssertionError(f"{self.argv} ended: {self.output()}")
            return None

        return await_(found, timeout, f"{pattern!r} from {self.argv[0]}")


class BackgroundPing(Process):
    def stop(self, number=signal.SIGINT, timeout=20):
        """Ends the ping and returns its Pings."""
        super().stop(number, timeout)
        return pings_of(self.output())

    def answers(self):
        """How many answers there have been so far."""
        return self.output().count(" bytes from ")

    def await_answers(self, more=5, timeout=20):
        """Waits for a number of further answers."""
        enough = self.answers() + more
        await_(lambda: self.answers() >= enough, timeout, f"{more} more answers")

    def goes_on(self, change):
        """Makes a change; answers go on after it, with no keepalive to help."""
        await_(lambda: self.answers() > 0, what="answer")
        change()
        self.await_answers()

    def stop_complete(self):
        """Ends the ping; its Pings. Answers went on, and each packet had one; the last ones may have
        been under way. Two that follow each other may have come by two processors."""
        self.await_answers()
        pings = self.stop()
        numbers = sorted(int(n) for n in re.findall(r" bytes from .*icmp_seq=(\d+)", self.output()))
        assert numbers == list(range(1, len(numbers) + 1)), f"not all answered: {numbers}"
        return pings


class Capture:
    """A running tcpdump; made by Host.capture, which returns when it is listening."""

    def __init__(self, host, dev, expression):
        self._file = host.lab.file("capture", ".pcap")
        argv = ["tcpdump", "-i", dev, "-n", "-U", "--immediate-mode", "-Z", "root"]
        # Room for 512 packets that are not yet written (KiB, bytes of each); as it is, for eight.
        argv += ["-B", "32768", "-s", "65000"]
        self._process = host.spawn([*argv, "-w", self._file, *expression.split()])
        self._process.await_output("listening on")

    def packets(self):
        """The IPv4 packets seen so far."""
        return packets.read_pcap(self._file.read_bytes() if self._file.exists() else b"")

    def matching(self, condition):
        return [packet for packet in self.packets() if condition(packet)]

    def await_packets(self, count=1, timeout=20, condition=lambda packet: True):
        """Waits for at least `count` packets that meet the condition, and returns them."""

        def enough():
            seen = self.matching(condition)
            return seen if len(seen) >= count else None

        return await_(enough, timeout, f"{count} packet(s) in the capture")

    def stop(self):
        """Ends it and returns the packets.

        What came last may be missing: to assert that something did not come, send a packet that
        does after it, and await that one first."""
        self._process.stop(signal.SIGINT)
        return self.packets()
