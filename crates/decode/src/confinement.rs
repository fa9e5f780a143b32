//! What a worker process cannot do, and how it gives those abilities up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which limits hold for the workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The worker's own address space in bytes, before it has any picture. `None` where the address
    /// space is not limited.
    pub own_address_space: Option<u64>,
    /// Whether seccomp allows only the system calls that decoding needs.
    pub seccomp: bool,
    /// Whether Landlock forbids all files and network connections.
    pub landlock: bool,
}

/// Shows the limits as the log names them.
impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            ("address space", self.own_address_space.is_some()),
            ("seccomp", self.seccomp),
            ("Landlock", self.landlock),
        ];
        let list = |wanted: bool| {
            let names = limits.iter().filter(|(_, holds)| *holds == wanted);
            names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        };
        match (list(true), list(false)) {
            (holds, lacks) if lacks.is_empty() => f.write_str(&holds),
            (holds, lacks) if holds.is_empty() => write!(f, "time only (the system lacks {lacks})"),
            (holds, lacks) => write!(f, "{holds} (the system lacks {lacks})"),
        }
    }
}

impl Confinement {
    /// Gives up what decoding does not need, for good, and returns what now holds. The service
    /// limits the address space, anew for each picture.
    ///
    /// # Errors
    /// Those of the system where a limit that it has cannot be set.
    #[cfg(target_os = "linux")]
    pub(crate) fn enter() -> std::io::Result<Self> {
        linux::enter()
    }

    /// Returns that nothing holds: this system has none of the means.
    #[cfg(all(unix, not(target_os = "linux")))]
    pub(crate) fn enter() -> std::io::Result<Self> {
        Ok(Self {
            own_address_space: None,
            seccomp: false,
            landlock: false,
        })
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::io;

    use landlock::{
        ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
        RulesetStatus, Scope,
    };
    use rustix::process::{Resource, Rlimit, Signal, setrlimit};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    use super::Confinement;

    /// The newest Landlock interface whose restrictions are asked for. Older kernels hold as many
    /// of them as they know.
    const LANDLOCK: ABI = ABI::V6;

    pub(super) fn enter() -> io::Result<Confinement> {
        // A worker must not outlive the service, whatever ends that.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let own = own_address_space()?;
        // No core dumps of strangers' pictures, no files, no further descriptors, no processes.
        for resource in [Resource::Core, Resource::Fsize, Resource::Nproc] {
            set_limit(resource, 0)?;
        }
        let landlock = enter_landlock();
        set_limit(Resource::Nofile, 0)?;
        Ok(Confinement {
            own_address_space: Some(own),
            landlock,
            seccomp: enter_seccomp(),
        })
    }

    fn set_limit(resource: Resource, most: u64) -> io::Result<()> {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        Ok(setrlimit(resource, limit)?)
    }

    /// Returns the address space of this process in bytes, from the first field of
    /// `/proc/self/statm`, which counts pages.
    fn own_address_space() -> io::Result<u64> {
        let statm = std::fs::read_to_string("/proc/self/statm")?;
        let pages = statm.split(' ').next().and_then(|text| text.parse().ok());
        let pages: u64 = pages.ok_or_else(|| io::Error::other("/proc/self/statm has no size"))?;
        Ok(pages * rustix::param::page_size() as u64)
    }

    /// Forbids every file, every connection, and signals and sockets to other processes. Returns
    /// whether the kernel has Landlock.
    fn enter_landlock() -> bool {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK))
            .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK)))
            .and_then(|ruleset| ruleset.scope(Scope::from_all(LANDLOCK)))
            .and_then(Ruleset::create)
            .and_then(landlock::RulesetCreated::restrict_self);
        ruleset.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
    }

    /// Allows only the system calls of [`ALLOWED`]; all others fail with `EPERM`. Returns whether
    /// the kernel has seccomp.
    fn enter_seccomp() -> bool {
        let filter = || -> Result<(), Box<dyn std::error::Error>> {
            let program: BpfProgram = SeccompFilter::new(
                rules()?,
                SeccompAction::Errno(libc::EPERM.unsigned_abs()),
                SeccompAction::Allow,
                std::env::consts::ARCH.try_into()?,
            )?
            .try_into()?;
            Ok(seccompiler::apply_filter(&program)?)
        };
        filter().is_ok()
    }

    /// The system calls that a worker may make, whatever their arguments: reading and writing its
    /// socket, memory, locks, the clock, random numbers for hash tables, signals to itself, the end.
    const ALLOWED: [libc::c_long; 28] = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_sendto,
        libc::SYS_close,
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_getrandom,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_restart_syscall,
        libc::SYS_sched_getaffinity,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_membarrier,
    ];

    /// Returns the filter's rules: [`ALLOWED`], and memory that is not executable.
    fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
        // The third argument of both is the protection.
        let not_executable = SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(libc::PROT_EXEC.unsigned_abs().into()),
            0,
        )?;
        let not_executable = SeccompRule::new(vec![not_executable])?;
        let mut rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            rules.insert(call, vec![not_executable.clone()]);
        }
        Ok(rules)
    }
}
