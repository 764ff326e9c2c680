//! Who runs when: a warm-up that finds each engine's fastest way, then rounds in which all take turns.
//!
//! An engine that breaks down loses all its times: half a record compares with nothing.
use std::{collections::BTreeMap, fs};

use anyhow::{Result, ensure};

use super::{
    LeftOut, Peer,
    report::Record,
    worker::{Ready, Worker},
};

/// Runs of each way in the warm-up, where there are several: the first pays for compiling and memory.
const TRIALS: usize = 3;

/// An engine in the game.
pub(super) struct Player {
    worker: Worker,
    ready: Ready,
    /// The fastest way of each phase it has been warmed up for.
    ways: BTreeMap<String, String>,
    record: Record,
}

impl Player {
    /// Starts its process, if there is memory for it.
    pub(super) fn start(peer: &Peer) -> Result<Player> {
        if let Some(free) = available_memory() {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let (needs, free) = (gib(peer.needs_bytes), gib(free));
            ensure!(needs <= free, "it needs {needs:.1} GiB of memory, {free:.1} GiB are free");
        }
        eprintln!("   {}: loading", peer.name);
        let (worker, ready) = Worker::start(&mut peer.command(), &peer.log)?;
        let record = Record::new(&peer.name, peer.ours, &ready.engine);
        Ok(Player { worker, ready, ways: BTreeMap::new(), record })
    }

    pub(super) fn finish(mut self) -> Record {
        self.record.peak_memory_bytes = self.worker.peak_memory();
        self.record
    }

    /// Finds the fastest way to run a phase; what went wrong with others.
    fn warm_up(&mut self, phase: &str, left_out: &mut Vec<LeftOut>) -> Result<()> {
        let ways = self.ready.phases.get(phase).cloned().unwrap_or_default();
        let trials = if ways.len() == 1 { 1 } else { TRIALS };
        let mut fastest: Option<(f64, String)> = None;
        for way in ways {
            for _ in 0..trials {
                match self.worker.run(phase, &way)? {
                    Ok(seconds) if fastest.as_ref().is_none_or(|(least, _)| seconds < *least) => {
                        fastest = Some((seconds, way.clone()));
                    }
                    Ok(_) => {}
                    Err(why) => {
                        let name = format!("{}, {phase}, {way}", self.record.name);
                        left_out.push(LeftOut::new(name, &anyhow::anyhow!(why)));
                        break;
                    }
                }
            }
        }
        if let Some((seconds, way)) = fastest {
            eprintln!("   {}: {phase} {seconds:.3} s {way}", self.record.name);
            self.record.ways.insert(phase.to_owned(), way.clone());
            self.ways.insert(phase.to_owned(), way);
        }
        Ok(())
    }

    /// Runs a phase once, if the engine has it.
    fn run(&mut self, phase: &str) -> Result<()> {
        let Some(way) = self.ways.get(phase) else { return Ok(()) };
        let seconds = self.worker.run(phase, way)?.map_err(anyhow::Error::msg)?;
        self.record.seconds.entry(phase.to_owned()).or_default().push(seconds);
        Ok(())
    }
}

pub(super) fn warm_up(players: &mut Vec<Player>, phases: &[&str], left_out: &mut Vec<LeftOut>) {
    for phase in phases {
        let mut ways = Vec::new();
        each(players, left_out, |player| player.warm_up(phase, &mut ways));
        left_out.append(&mut ways);
    }
}

/// All phases of all engines, in turns. Comes back with the part of the processors' time that went to other programs
/// meanwhile, where the system tells: engines whose threads wait for one another suffer most from them.
pub(super) fn play(
    players: &mut Vec<Player>,
    phases: &[&str],
    rounds: usize,
    left_out: &mut Vec<LeftOut>,
) -> Option<f64> {
    let before = Usage::now(players);
    for round in 1..=rounds {
        eprintln!("   round {round} of {rounds}");
        for phase in phases {
            each(players, left_out, |player| player.run(phase));
        }
        // Whoever came first comes last: what one leaves in the caches is not always the same one's burden.
        players.reverse();
    }
    if rounds % 2 == 1 {
        players.reverse();
    }
    Some(Usage::now(players)?.others_since(&before?))
}

/// What the processors have done, in seconds.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// All of them together, for anybody.
    busy: f64,
    idle: f64,
    engines: f64,
}

impl Usage {
    fn now(players: &[Player]) -> Option<Usage> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let engines = players.iter().map(|player| player.worker.processor_seconds());
        Usage::parse(&stat, engines.sum::<Option<f64>>()?)
    }

    /// From the first line of `/proc/stat`: ticks of 10 ms, the fourth and the fifth of them idle.
    fn parse(stat: &str, engines: f64) -> Option<Usage> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        // What guests of a virtual machine had comes behind, and is counted before.
        let seconds: Option<Vec<f64>> =
            fields.take(8).map(|ticks| Some(ticks.parse::<f64>().ok()? / 100.0)).collect();
        let seconds = seconds?;
        let idle = seconds.get(3)? + seconds.get(4)?;
        Some(Usage { busy: seconds.iter().sum::<f64>() - idle, idle, engines })
    }

    /// The part of the time since then that went to others.
    fn others_since(&self, then: &Usage) -> f64 {
        let others = (self.busy - then.busy) - (self.engines - then.engines);
        let all = (self.busy + self.idle) - (then.busy + then.idle);
        (others / all.max(f64::MIN_POSITIVE)).max(0.0)
    }
}

/// Has every engine do something; those that fail are out.
fn each(
    players: &mut Vec<Player>,
    left_out: &mut Vec<LeftOut>,
    mut what: impl FnMut(&mut Player) -> Result<()>,
) {
    players.retain_mut(|player| match what(player) {
        Ok(()) => true,
        Err(error) => {
            left_out.push(LeftOut::new(&player.record.name, &error));
            false
        }
    });
}

/// `MemAvailable` of `/proc/meminfo`, in bytes, where there is one.
fn available_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    /// An engine that is a shell script: `answers` is the body of a loop over `$order`.
    fn player(name: &str, phases: &str, answers: &str) -> Player {
        let ready = format!(r#"{{"engine": "{name} 1", "phases": {phases}}}"#);
        let script = format!(
            "echo '{ready}'; while read -r order; do case \"$order\" in {answers} esac; done"
        );
        let folder = crate::root().join("target/tmp");
        fs::create_dir_all(&folder).unwrap();
        let peer = Peer {
            name: name.into(),
            ours: name == "ours",
            program: "sh".into(),
            args: vec!["-c".into(), script],
            envs: Vec::new(),
            log: folder.join(format!("peer-{name}.log")),
            needs_bytes: 1,
        };
        Player::start(&peer).unwrap()
    }

    const OURS: &str = r#"prefill) echo '{"seconds": 1.0}';;"#;

    #[test]
    fn the_fastest_way_is_kept_and_all_take_turns() {
        let rival = r#"
            prefill,slow) echo '{"seconds": 3.0}';;
            prefill,fast) echo '{"seconds": 2.0}';;
            prefill,none) echo '{"error": "no compiler"}';;
            vision) echo '{"seconds": 5.0}';;"#;
        let phases = r#"{"prefill": ["slow", "fast", "none"], "vision": [""]}"#;
        let mut players =
            vec![player("ours", r#"{"prefill": [""]}"#, OURS), player("rival", phases, rival)];
        let mut left_out = Vec::new();
        warm_up(&mut players, &["vision", "prefill"], &mut left_out);
        play(&mut players, &["vision", "prefill"], 3, &mut left_out);
        let why = "no compiler".to_owned();
        assert_eq!(left_out, [LeftOut { name: "rival, prefill, none".into(), why }]);
        let records: Vec<Record> = players.into_iter().map(Player::finish).collect();
        assert_eq!(records[0].seconds, [("prefill".to_owned(), vec![1.0; 3])].into());
        assert_eq!(records[1].ways["prefill"], "fast");
        assert_eq!(records[1].seconds["prefill"], [2.0; 3]);
        assert_eq!(records[1].seconds["vision"], [5.0; 3]);
    }

    #[test]
    fn what_others_had_is_what_engines_had_not() {
        let usage = |stat, engines| Usage::parse(stat, engines).unwrap();
        let then = usage("cpu  100 0 100 1000 0 0 0 0 0 0\ncpu0 1 1", 1.0);
        // 8 s of 10 busy, of which the engines had 6.
        let now = usage("cpu  700 0 200 1200 0 0 0 100 50 0\ncpu0 1 1", 7.0);
        assert!((now.others_since(&then) - 0.2).abs() < 1e-9);
        assert!(Usage::parse("intr 1 2", 0.0).is_none());
    }

    #[test]
    fn who_breaks_down_is_left_out_and_the_others_go_on() {
        let rival = r#"prefill) echo 'out of memory' >&2; exit 3;;"#;
        let phases = r#"{"prefill": [""]}"#;
        let mut players = vec![player("ours", phases, OURS), player("rival", phases, OURS)];
        let mut left_out = Vec::new();
        warm_up(&mut players, &["prefill"], &mut left_out);
        players.push(player("broken", phases, rival));
        warm_up(&mut players, &["prefill"], &mut left_out);
        play(&mut players, &["prefill"], 2, &mut left_out);
        assert_eq!(left_out.len(), 1, "{left_out:?}");
        assert_eq!(left_out[0].name, "broken");
        assert_eq!(left_out[0].why, "it ended (exit status: 3): out of memory");
        let times = players.iter().map(|player| player.record.seconds["prefill"].len());
        assert_eq!(times.collect::<Vec<_>>(), [2, 2]);
    }
}
