//! Routes, forwarding and name servers.

use ipipou::engine::config::{GatewayConfig, Masquerade};

use super::*;

fn networks(gateway: &GatewayConfig) -> Vec<String> {
    gateway.routes.iter().map(ToString::to_string).collect()
}

#[test]
fn no_gateway_setting_is_on_by_default() {
    let nothing = GatewayConfig { mark: 0x6970_0000, ..GatewayConfig::default() };
    assert_eq!(client("").tunnel.gateway, nothing);
    assert_eq!(server("").tunnel.gateway, nothing);
    assert_eq!(node(NODE).tunnel.gateway, nothing);
}

#[test]
fn routes_and_name_servers_add_up() {
    let line = "--route 10.1.0.0/16 --route 10.2.3.4 --dns 9.9.9.9 --dns [2620:fe::fe]";
    let gateway = client(line).tunnel.gateway;
    assert_eq!(networks(&gateway), ["10.1.0.0/16", "10.2.3.4/32"]);
    assert_eq!(gateway.dns, ["9.9.9.9".parse::<IpAddr>().unwrap(), "2620:fe::fe".parse().unwrap()]);
    assert_eq!(networks(&server("--route 10.1.0.0/16").tunnel.gateway), ["10.1.0.0/16"]);
    let both = server("--route 2001:db8:1::/48 --ip6 fd00::1").tunnel.gateway;
    assert_eq!(networks(&both), ["2001:db8:1::/48"]);
    let three = run(&format!("{CLIENT} --dns 9.9.9.9 --dns 9.9.9.10 --dns 9.9.9.11"));
    assert!(!three.warnings.iter().any(|warning| warning.contains("--dns")));
    let four = run(&format!("{CLIENT} --dns 9.9.9.9 --dns 9.9.9.10 --dns 9.9.9.11 --dns 1.1.1.1"));
    assert!(four.warnings.iter().any(|warning| warning.contains("only the first 3")));
}

#[test]
fn routes_of_a_file_and_of_the_command_line_add_up() {
    let text = "server\nb @eth0\nroute 10.1.0.0/16\nroute 10.2.0.0/16\n";
    let Ok(Invocation::Run(run)) = with_file(text, "--route 10.3.0.0/16") else { panic!("no run") };
    let server = Server::of(run.config);
    assert_eq!(networks(&server.tunnel.gateway), ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]);
    let Err(CliError::Usage(line)) = with_file(text, "--route 10.2.0.0/16") else { panic!("run") };
    assert_eq!(line, "--route: 10.2.0.0/16 is given twice");
}

#[test]
fn every_tunnel_of_a_host_has_its_own_mark() {
    let line = "--default-route -n 5";
    let gateway = client(line).tunnel.gateway;
    assert!(gateway.default_route);
    assert_eq!(gateway.mark, 0x6970_0005);
    let far = "-n 65536 --fou-local-port 1 --fou-local-ip-alt 172.29.0.1 -q 1 --tunl-ip 10.0.0.1";
    assert_eq!(server(far).tunnel.gateway.mark, 0x6970_ffff);
}

#[test]
fn masquerade_names_one_interface_or_means_any() {
    assert_eq!(server("--masquerade").tunnel.gateway.masquerade, Some(Masquerade::Anywhere));
    let by = |name: &str| Some(Masquerade::By(name.parse().unwrap()));
    for (line, expected) in [
        ("--masquerade eth1", by("eth1")),
        ("--masquerade=eth1 -v", by("eth1")),
        ("--masquerade -v", Some(Masquerade::Anywhere)),
        ("--masquerade eth1 --masquerade", Some(Masquerade::Anywhere)),
        ("--masquerade --masquerade eth2", by("eth2")),
    ] {
        assert_eq!(server(line).tunnel.gateway.masquerade, expected, "{line}");
        assert_eq!(client(line).tunnel.gateway.masquerade, expected, "{line}");
        assert_eq!(node(&format!("{NODE} {line}")).tunnel.gateway.masquerade, expected, "{line}");
    }
    for (line, expected) in
        [("masquerade", Some(Masquerade::Anywhere)), ("masquerade eth1", by("eth1"))]
    {
        let text = format!("server\nb @eth0\nforward\n{line}\n");
        let Ok(Invocation::Run(run)) = with_file(text, "") else { panic!("no run") };
        let server = Server::of(run.config);
        assert_eq!(server.tunnel.gateway.masquerade, expected, "{line}");
        assert!(server.tunnel.gateway.forward);
    }
}
