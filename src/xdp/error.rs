//! [`EdgeError`]: why the edge could not be opened, in words for the operator: what, where, what to do.

use super::Mode;
use std::{fmt, io};

/// Why the edge could not be opened or changed.
#[derive(Debug)]
pub enum EdgeError {
    /// The process may not do this.
    Privilege {
        /// What was refused, or the capabilities that are missing.
        what: String,
    },
    /// The kernel has no BTF of itself.
    NoBtf,
    /// The kernel knows no AF_XDP.
    NoAfXdp,
    /// The kernel lacks something else that is needed.
    Kernel {
        /// What.
        what: String,
    },
    /// No way to move packets worked on these interfaces.
    Refused {
        /// The mode that was asked for.
        mode: Mode,
        /// One sentence for each mode tried, in order.
        reasons: Vec<String>,
    },
    /// There is no such interface.
    NoInterface {
        /// Its name.
        name: String,
    },
    /// The interface is down.
    Down {
        /// Its name.
        name: String,
    },
    /// Both ports name one interface.
    SameInterface {
        /// Its name.
        name: String,
    },
    /// Another XDP program is attached.
    OtherProgram {
        /// The interface.
        name: String,
        /// The program's id, as `bpftool prog` shows it; 0 when unknown.
        id: u32,
        /// The program's name, when it could be read.
        program: Option<String>,
    },
    /// Another process holds a queue.
    Busy {
        /// The interface.
        name: String,
        /// The queue.
        queue: u32,
    },
    /// A setting makes no sense, or not on these interfaces.
    Setting {
        /// What is wrong and what would be right.
        what: String,
    },
    /// The operating system failed at something it should be able to do.
    System {
        /// What was being done.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
}

impl EdgeError {
    /// Whether this machine, its kernel or its drivers can't do it (exit code 3), as against a wrong setting or a failure.
    pub fn is_machine_limit(&self) -> bool {
        matches!(
            self,
            EdgeError::Privilege { .. }
                | EdgeError::NoBtf
                | EdgeError::NoAfXdp
                | EdgeError::Kernel { .. }
                | EdgeError::Refused { .. }
        )
    }

    pub(super) fn system(doing: impl Into<String>, source: io::Error) -> EdgeError {
        let doing = doing.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => EdgeError::Privilege { what: format!("the kernel refused to {doing}") },
            Some(libc::EAFNOSUPPORT) => EdgeError::NoAfXdp,
            _ => EdgeError::System { doing, source },
        }
    }

    pub(super) fn setting(what: impl Into<String>) -> EdgeError {
        EdgeError::Setting { what: what.into() }
    }
}

impl fmt::Display for EdgeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EdgeError::Privilege { what } => write!(
                f,
                "{what}: run as root, or give the process CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON \
                 (and CAP_IPC_LOCK, or an unlimited RLIMIT_MEMLOCK)"
            ),
            EdgeError::NoBtf => f.write_str(
                "the kernel has no BTF (/sys/kernel/btf/vmlinux is missing): it needs CONFIG_DEBUG_INFO_BTF=y",
            ),
            EdgeError::NoAfXdp => f.write_str("the kernel has no AF_XDP sockets: it needs CONFIG_XDP_SOCKETS=y"),
            EdgeError::Kernel { what } => f.write_str(what),
            EdgeError::Refused { mode, reasons } => {
                write!(f, "mode {mode} does not work here")?;
                reasons.iter().try_for_each(|reason| write!(f, "; {reason}"))
            }
            EdgeError::NoInterface { name } => write!(f, "interface {name} does not exist (`ip link` lists them)"),
            EdgeError::Down { name } => write!(f, "interface {name} is down: `ip link set {name} up` first"),
            EdgeError::SameInterface { name } => write!(f, "lan and wan are both {name}: two interfaces are needed"),
            EdgeError::OtherProgram { name, id, program } => {
                write!(f, "another XDP program")?;
                if let Some(program) = program {
                    write!(f, ", {program}")?;
                }
                if *id != 0 {
                    write!(f, " (id {id})")?;
                }
                write!(f, " is attached to {name}: stop its owner, or `ip link set {name} xdp off`")
            }
            EdgeError::Busy { name, queue } => write!(
                f,
                "queue {queue} of {name} is held by another AF_XDP socket: is another xrouter running? (`ss --xdp -ap`)"
            ),
            EdgeError::Setting { what } => f.write_str(what),
            EdgeError::System { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

impl std::error::Error for EdgeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            EdgeError::System { source, .. } => Some(source),
            _ => None,
        }
    }
}
