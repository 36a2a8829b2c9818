//! NAME OUTER PORT MARK UPLINK LINK MTU REMOTE NETWORK: makes a fast path until stdin ends.
use std::io::Read;
use ipipou::engine::host::{FastPath, FastPathEnds, FastPeer};
fn index(name: &str) -> u32 {
    let c = std::ffi::CString::new(name).unwrap();
    unsafe { libc::if_nametoindex(c.as_ptr()) }
}
fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let (uplink, link) = (index(&a[4]), index(&a[5]));
    let mut adapter = ipipou::bpf::FastPathAdapter::of(&a[0]);
    let peer = FastPeer { networks: [a[8].parse().unwrap()].into(), link, mtu: a[6].parse().unwrap() };
    adapter.install(&FastPath {
        ends: FastPathEnds { outer: a[1].parse().unwrap(), port: a[2].parse().unwrap(), mark: a[3].parse().unwrap(),
            time_to_live: 64, uplink, links: [link].into() },
        peers: [(a[7].parse().unwrap(), peer)].into(), except: Default::default() }).unwrap();
    println!("{:?}", adapter.read().unwrap());
    let mut s = String::new();
    std::io::stdin().read_to_string(&mut s).unwrap();
    println!("{:?}", adapter.traffic());
    adapter.remove().unwrap();
}
