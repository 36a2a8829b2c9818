//! Servers that learn, hosts of a table, and the datapath that carries them.

use std::time::Duration;

use ipipou::engine::config::{Datapath, DatapathChoice, HostsSource, LearnConfig};

use super::*;

fn hub(line: &str) -> Server {
    Server::of(run(&format!("{HUB} {line}")).config)
}

#[test]
fn learn_has_an_inner_network_and_limits() {
    let server = hub("");
    let defaults = LearnConfig { lifetime: Duration::from_secs(60), limit: 1024 };
    assert_eq!(server.learn, Some(defaults));
    assert_eq!(server.tunnel.inner.to_string(), "10.8.0.1");
    assert_eq!(server.tunnel.inner_peer.to_string(), "10.8.0.0/24");
    let given = LearnConfig { lifetime: Duration::from_millis(1500), limit: 65_536 };
    assert_eq!(hub("--learn-lifetime 1.5 --learn-limit 65536").learn, Some(given));
    assert_eq!(hub("-q 7").tunnel.device.as_str(), "ipipou7");
}

#[test]
fn a_server_that_lets_anybody_in_causes_a_warning() {
    let warned = |line: &str| {
        let warnings = run(line).warnings;
        warnings.iter().any(|warning| warning.contains("is let in"))
    };
    assert!(warned(HUB));
    assert!(warned(&format!("{HUB} -r 192.0.2.1 --auth-by-remote-ip")));
    assert!(!warned(&format!("{HUB} --auth-remote-pubkey-b64 {PUBLIC}")));
    assert!(!warned(&format!("{HUB} --auth-token t")));
    assert!(!warned(SERVER));
}

#[test]
fn a_table_may_be_a_file() {
    let node = node(NODE);
    assert_eq!(node.hosts, HostsSource::File("/t.json".into()));
    assert_eq!(node.tunnel.inner.to_string(), "10.7.0.1");
    assert_eq!(node.tunnel.inner_peer.to_string(), "10.7.0.0/24");
    assert_eq!(run(NODE).warnings, Vec::<String>::new());
}

#[test]
#[cfg(feature = "hosts-url")]
fn a_table_may_be_a_url() {
    use ipipou::engine::config::{Authorities, HostsUrl};

    let url = |line: &str| match self::node(&format!("-b @e --tunl-ip 10.7.0.1 {line}")).hosts {
        HostsSource::Url(url) => url,
        HostsSource::File(_) => panic!("{line}: a file"),
    };
    let defaults = HostsUrl {
        url: "https://a/t".into(),
        interval: Duration::from_secs(300),
        authorities: Authorities::System,
    };
    assert_eq!(url("--hosts-url https://a/t"), defaults);
    let given = url("--hosts-url https://a/t --hosts-url-interval 10 --ca-file /ca.pem");
    assert_eq!(given.interval, Duration::from_secs(10));
    assert_eq!(given.authorities, Authorities::File("/ca.pem".into()));
    let given = url("--hosts-url https://a/t --ca-path /ca");
    assert_eq!(given.authorities, Authorities::Directory("/ca".into()));
}

/// And what to do is said, whatever the URL is.
#[test]
#[cfg(not(feature = "hosts-url"))]
fn a_url_is_refused_in_a_build_without_hosts_url() {
    for url in ["https://a/t", "http://me:h7u3q9z1@a/t"] {
        let line = usage(["-b", "@e", "--tunl-ip", "10.7.0.1", "--hosts-url", url]);
        assert_eq!(
            line,
            "--hosts-url: this ipipou was built without it; `cargo build --features hosts-url` \
             builds it in, --hosts-file reads the table from a file"
        );
    }
}

#[test]
fn a_host_of_a_table_ignores_the_server_option() {
    for line in ["-s", "-s -q 7"] {
        assert_eq!(node(&format!("{NODE} {line}")).tunnel.device.as_str(), "ipipou0", "{line}");
    }
    let alone = node("-b @eth0 -n2 --tunl-ip 10.7.0.1 --hosts-file t.json").tunnel;
    assert_eq!(alone.inner_peer.to_string(), "10.7.0.1/32");
    assert_eq!(alone.port.get(), 10002);
}

#[test]
fn the_datapath_is_chosen_by_option() {
    assert_eq!(client("").tunnel.datapath, DatapathChoice::Auto);
    assert_eq!(client("").tunnel.queues, None);
    let tun = client("--datapath tun --tun-queues 4").tunnel;
    assert_eq!(tun.datapath, DatapathChoice::Only(Datapath::Tun));
    assert_eq!(tun.queues.map(usize::from), Some(4));
    let kernel = node(&format!("{NODE} --datapath kernel")).tunnel;
    assert_eq!(kernel.datapath, DatapathChoice::Only(Datapath::Kernel));
    let both = usage(format!("{NODE} --datapath kernel --tun-queues 4").split(' '));
    assert_eq!(both, "--datapath kernel cannot do --tun-queues: leave out one of them");
}

#[test]
fn ipv6_is_accepted_inside_and_outside_the_tunnel() {
    assert_eq!(client("").tunnel.inner6, None);
    assert_eq!(client("--ip6 fd00::2").tunnel.inner6.unwrap().to_string(), "fd00::2/64");
    assert_eq!(server("--ip6 fd00::1/127").tunnel.inner6.unwrap().to_string(), "fd00::1/127");

    let line = "-b [2001:db8::2]:7@eth0 -r [2001:db8::1]:10000 --tunl-ip 172.28.0.1";
    let client = Client::of(run(line).config);
    assert_eq!(
        format!("{:?}", client.tunnel.outer),
        "AddressOn(2001:db8::2, DeviceName(\"eth0\"))"
    );
    assert_eq!(client.tunnel.port.get(), 7);
    assert_eq!(client.server.host, HostName::Address("2001:db8::1".parse().unwrap()));
    let single = "-s --fou-local-ip 2001:db8::1 --fou-remote-ip 2001:db8::2 --auth-by-remote-ip";
    let server = Server::of(run(single).config);
    assert_eq!(server.tunnel.outer, Outer::Address("2001:db8::1".parse().unwrap()));
    assert_eq!(server.policy.remote_ip, Some("2001:db8::2".parse().unwrap()));
}
