//! Where the programs are attached: filters of the kind `bpf`, below the queueing discipline `clsact`
//! (tc-bpf(8), Documentation/netlink/specs/tc.yaml).
//!
//! They stay when this process is killed, which TCX links (6.6) do not. Each has the name of its tunnel,
//! by which the next process finds it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsRawFd as _;

use netlink_bindings::tc::{OptionsMsg, Request, Tcmsg};
use netlink_socket2::NetlinkSocket;

use super::program::Program;

const KIND: &CStr = c"bpf";
const CLSACT: &CStr = c"clsact";
/// `TC_H_CLSACT` in linux/pkt_sched.h, and the discipline's own handle.
const PARENT: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;
/// `ETH_P_IP`, in network byte order: nothing else is given to the programs.
const IPV4: u16 = 0x0800_u16.to_be();
/// Filters with lower numbers come first. For whoever chooses none the kernel takes 49152, or one less than the
/// one that it comes before (`tcf_auto_prio` in net/sched/cls_api.c): those that take or drop packets
/// come before this one.
const PRIORITY: u32 = 60_000;
/// `TCA_BPF_FLAG_ACT_DIRECT`: the program says what is done.
const DIRECT: u32 = 1;

/// Of linux/netlink.h.
const NLM_F_ECHO: u16 = 8;

/// Which packets of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

/// The filters of one tunnel.
pub struct Filters {
    socket: NetlinkSocket,
    name: CString,
}

/// A filter as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    handle: u32,
    /// Priority and protocol, as the kernel has them.
    info: u32,
    /// The number of its program.
    pub program: u32,
}

impl Filters {
    pub fn of(tunnel: &str) -> Self {
        // The name of an interface has no zero byte.
        let name = CString::new(format!("ipipou {tunnel}")).unwrap_or_default();
        Filters { socket: NetlinkSocket::new(), name }
    }

    /// This tunnel's filter there, if there is one. There is none on an interface that does not exist.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn find(&mut self, interface: u32, hook: Hook) -> io::Result<Option<Filter>> {
        Ok(self
            .list(interface, hook)?
            .into_iter()
            .find_map(|(filter, ours)| ours.then_some(filter)))
    }

    /// All filters of this kind there, and whether each is this tunnel's.
    fn list(&mut self, interface: u32, hook: Hook) -> io::Result<Vec<(Filter, bool)>> {
        let request = Request::new().op_gettfilter_dump(&header(interface, hook, 0, 0));
        let mut replies = self.socket.request(&request)?;
        let mut found = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attributes) = reply?;
            let Ok(OptionsMsg::Bpf(options)) = attributes.get_options() else { continue };
            // The first message about a priority is about no filter.
            let Ok(program) = options.get_id() else { continue };
            let ours = options.get_name().is_ok_and(|name| name == self.name.as_c_str());
            found.push((Filter { handle: header.handle, info: header.info, program }, ours));
        }
        Ok(found)
    }

    /// Attaches a program, unless it is there, in the place of this tunnel's other one if there is one: every
    /// packet meets one or the other.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn attach(&mut self, interface: u32, hook: Hook, program: &Program) -> io::Result<()> {
        let there = self.find(interface, hook)?;
        if there.is_some_and(|filter| filter.program == program.id) {
            return Ok(());
        }
        if there.is_none() {
            self.prepare(interface)?;
        }
        let (handle, info) =
            there.map_or((0, PRIORITY << 16 | u32::from(IPV4)), |f| (f.handle, f.info));
        let request = Request::new().set_create();
        let request = if there.is_none() { request.set_excl() } else { request };
        let mut request = request.op_newtfilter_do(&header(interface, hook, handle, info));
        request
            .encode()
            .nested_options_bpf()
            .push_fd(program.fd.as_raw_fd().cast_unsigned())
            .push_name(&self.name)
            .push_flags(DIRECT);
        self.socket.request(&request)?.recv_ack().map_err(io::Error::from)
    }

    /// Removes this tunnel's filter.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn detach(&mut self, interface: u32, hook: Hook) -> io::Result<()> {
        let Some(Filter { handle, info, .. }) = self.find(interface, hook)? else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let mut request = Request::new().op_deltfilter_do(&header(interface, hook, handle, info));
        request.encode().push_kind(KIND);
        self.socket.request(&request)?.recv_ack().map_err(io::Error::from)
    }

    /// Adds `clsact`, below which filters are, unless it is there.
    ///
    /// # Errors
    /// What the kernel said; and where there is an `ingress` in its place, which would take a filter for what
    /// goes out as one for what comes in.
    pub fn prepare(&mut self, interface: u32) -> io::Result<()> {
        let header =
            Tcmsg { handle: HANDLE, parent: PARENT, ..header(interface, Hook::Ingress, 0, 0) };
        let mut request = Request::new().set_create().set_excl().op_newqdisc_do(&header);
        request.encode().push_kind(CLSACT);
        match self.socket.request(&request)?.recv_ack().map_err(io::Error::from) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if self.is_clsact(interface)? {
                    return Ok(());
                }
                Err(io::Error::other("there is a queueing discipline `ingress`, and not `clsact`"))
            }
            result => result,
        }
    }

    /// Whether what is in the place of `clsact` is one.
    fn is_clsact(&mut self, interface: u32) -> io::Result<bool> {
        let header = Tcmsg { parent: PARENT, ..header(interface, Hook::Ingress, 0, 0) };
        // Before 6.6 the kernel tells everybody but who asked, without this (`qdisc_notify`).
        let request = Request::new().set_flags(NLM_F_ECHO).op_getqdisc_do(&header);
        let mut replies = self.socket.request(&request)?;
        let Some(reply) = replies.recv() else { return Ok(false) };
        let (_, attributes) = reply?;
        Ok(attributes.get_kind().is_ok_and(|kind| kind == CLSACT))
    }
}

fn header(interface: u32, hook: Hook, handle: u32, info: u32) -> Tcmsg {
    /// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` in linux/pkt_sched.h.
    const INGRESS: u32 = 0xffff_fff2;
    const EGRESS: u32 = 0xffff_fff3;
    let mut header = Tcmsg::new();
    header.ifindex = interface.cast_signed();
    header.handle = handle;
    header.parent = match hook {
        Hook::Ingress => INGRESS,
        Hook::Egress => EGRESS,
    };
    header.info = info;
    header
}
