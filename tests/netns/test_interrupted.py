"""Lists of the kernel that other programs change while they are read."""

import time

import ipipou
from gateways import TOKEN

# The kernel tells the rules in parts. One that goes meanwhile moves those behind it: the first of the part that is
# still to come is not told. These come before ours, and others come and go before them.
FOREIGN = 580
CHANGING = 55
TABLE = "to 192.0.2.1 table 7"
SECONDS = 10


def test_rules_that_come_and_go_hide_none_of_ours(lab, tmp_path):
    """What a list lacks would be put there again. Nor do they keep the host from being read."""
    client = ipipou.neighbours(lab)[1]
    rules = (f"rule add pref {100 + n} {TABLE}\n" for n in range(FOREIGN))
    client.run("ip -batch -", input="".join(rules))
    far = ipipou.client(client, *TOKEN, "--default-route")
    come = "".join(f"rule add pref {1 + n} {TABLE}\n" for n in range(CHANGING))
    changes = tmp_path / "changes"
    changes.write_text(20 * (come + come.replace("add", "del")))
    client.spawn(["sh", "-c", f"while ip -batch {changes}; do :; done"])
    end, length = time.monotonic() + SECONDS, 500
    while time.monotonic() < end:
        length = 1001 - length
        client.run(f"ip link set {far.dev} txqueuelen {length}")  # for each, all rules are read
    assert far.show()["repaired"] == 0
    assert "cannot read the host" not in far.process.output()
    assert far.process.stop() == 0
