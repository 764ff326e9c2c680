//! What a processor is opened with when nobody says: the environment's level of instructions, and as many threads as
//! the system lets this process keep busy.
//!
//! Each question is asked in a process of its own, whose environment, control groups or affinity are of the test's
//! making. What is wanted is never what an unlimited process would say; where that cannot be (one processor, no
//! namespaces) the test says SKIPPED.
#![allow(unsafe_code, reason = "a thread's affinity has no safe interface")]
use std::{env, io::Write, process::Command};

use photon_core::Device;
use photon_cpu::{Cpu, CpuOptions, Isa};

#[test]
#[ignore = "what the other tests run in a process of its own"]
fn opened_in_a_process_of_its_own() {
    let opened = Cpu::open(CpuOptions::default());
    println!("opened: {}", opened.map_or_else(|error| error.to_string(), |cpu| cpu.name()));
}

/// What a process says that `command` starts, with the arguments it is given here.
fn ask(command: &mut Command) -> Result<String, String> {
    command.args([
        "--ignored",
        "--exact",
        "--nocapture",
        "machine::opened_in_a_process_of_its_own",
    ]);
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let answer = said.lines().find_map(|line| line.split_once("opened: "));
    answer.map(|(_, answer)| answer.to_owned()).ok_or_else(|| {
        format!("{said}{}", String::from_utf8_lossy(&output.stderr)).trim().to_owned()
    })
}

fn this_program() -> Command {
    Command::new(env::current_exe().unwrap())
}

fn threads_of(name: &str) -> usize {
    let words: Vec<&str> = name.split([' ', '(', ')', ',']).collect();
    let at = words.iter().position(|word| word.starts_with("thread")).expect("threads");
    words[at - 1].parse().expect("a number of threads")
}

fn skip(what: &str, why: &str) {
    // Not by `eprintln!`, which the harness keeps to itself when a test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
}

#[test]
fn the_environment_forces_each_level() {
    let levels = Isa::available();
    for isa in &levels {
        let name = ask(this_program().env(Isa::VARIABLE, isa.name())).unwrap();
        assert!(name.starts_with(&format!("cpu ({},", isa.name())), "{}: {name}", isa.name());
    }
    let best = ask(this_program().env_remove(Isa::VARIABLE)).unwrap();
    assert!(best.starts_with(&format!("cpu ({},", Isa::detect().name())), "{best}");
    let refused = ask(this_program().env(Isa::VARIABLE, "avx9")).unwrap();
    assert!(
        refused.contains("PHOTON_CPU_ISA=avx9: no such level; set one of portable"),
        "{refused}"
    );
}

/// Control groups as a process sees them: what `/proc/self/cgroup` says, and files below `/sys/fs/cgroup`.
#[cfg(target_os = "linux")]
struct Groups {
    own: &'static str,
    files: Vec<(&'static str, String)>,
}

#[cfg(target_os = "linux")]
impl Groups {
    /// What a process says that lives in these groups; they are mounted over the system's, in its own namespace.
    fn ask(&self) -> Result<String, String> {
        let folder = env::temp_dir().join(format!("photon-groups-{}", std::process::id()));
        let tree = folder.join("tree");
        for (path, text) in &self.files {
            let path = tree.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        std::fs::write(folder.join("own"), self.own).unwrap();
        let mounts = "mount --bind \"$0/tree\" /sys/fs/cgroup && mount --bind \"$0/own\" /proc/$$/cgroup \
                      && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", mounts]).arg(&folder);
        let answer = ask(command.arg(env::current_exe().unwrap()));
        std::fs::remove_dir_all(&folder).unwrap();
        answer
    }
}

#[cfg(target_os = "linux")]
#[test]
fn quotas_of_control_groups_count_those_of_parents_too() {
    const WHAT: &str = "quotas";
    let all = threads_of(&ask(&mut this_program()).unwrap());
    if all < 2 {
        return skip(WHAT, "a quota takes nothing from one processor");
    }
    // In microseconds, of which a period has 100,000 for each processor.
    let most = |threads: usize| threads * 100_000;
    let unified = |outer: &str, inner: &str| Groups {
        own: "0::/outer/inner\n",
        files: vec![
            ("outer/inner/cgroup.controllers", "cpu\n".into()),
            ("outer/cpu.max", format!("{outer} 100000\n")),
            ("outer/inner/cpu.max", format!("{inner} 100000\n")),
        ],
    };
    if let Err(why) = unified("max", "max").ask() {
        return skip(WHAT, &why);
    }
    let first = |outer: &str, inner: &str| Groups {
        own: "3:memory:/elsewhere\n2:cpu,cpuacct:/outer/inner\n1:name=systemd:/\n0::/\n",
        files: vec![
            ("cpu/outer/cpu.cfs_quota_us", format!("{outer}\n")),
            ("cpu/outer/cpu.cfs_period_us", "100000\n".into()),
            ("cpu/outer/inner/cpu.cfs_quota_us", format!("{inner}\n")),
            ("cpu/outer/inner/cpu.cfs_period_us", "100000\n".into()),
        ],
    };
    let (less, much) = (most(all - 1).to_string(), most(10 * all).to_string());
    // A part of a processor is not one more.
    let odd = (most(all) - 1).to_string();
    for (groups, want, about) in [
        (unified("max", "max"), all, "no quota"),
        (unified("max", &much), all, "more than there is"),
        (unified("max", &less), all - 1, "its own quota"),
        (unified(&less, "max"), all - 1, "its parent's quota"),
        (unified(&less, &much), all - 1, "its parent's, the smaller one"),
        (unified("max", &odd), all - 1, "parts of a processor"),
        (unified("max", "1000"), 1, "a hundredth of a processor"),
        (first("-1", "-1"), all, "no quota, first version"),
        (first("-1", &less), all - 1, "its own quota, first version"),
        (first(&less, "-1"), all - 1, "its parent's quota, first version"),
    ] {
        assert_eq!(threads_of(&groups.ask().unwrap()), want, "{about}, {all} processors");
    }
}

/// The processors this thread may run on.
#[cfg(target_os = "linux")]
fn affinity() -> libc::cpu_set_t {
    // SAFETY: a set is bits, all of which may be zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the size is that of the set, which the call fills.
    let done = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    set
}

#[cfg(target_os = "linux")]
#[test]
fn processors_that_affinity_takes_away_are_not_counted() {
    let opened = || Cpu::open(CpuOptions::default()).unwrap().name();
    let (all, mut set) = (threads_of(&opened()), affinity());
    let is_in = |set: &libc::cpu_set_t, i: &usize| {
        // SAFETY: `i` is below the number of a set's bits.
        unsafe { libc::CPU_ISSET(*i, set) }
    };
    let mine: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(|i| is_in(&set, i)).collect();
    if all < 2 || all < mine.len() {
        return skip("affinity", "one processor, or a quota that is smaller");
    }
    // SAFETY: the processor is one of the set's.
    unsafe { libc::CPU_CLR(mine[0], &mut set) };
    // The affinity of this thread, which ends with the test.
    // SAFETY: the size is that of the set, which the call reads.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    assert_eq!(threads_of(&opened()), mine.len() - 1);
}
