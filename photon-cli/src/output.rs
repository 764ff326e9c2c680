//! Everything that is printed: answers to standard output, the rest to standard error.
#![allow(clippy::print_stderr, reason = "this is the program's voice")]
use std::io::{self, IsTerminal, Write};

use photon::{Answer, BoundingBox, Point, Response, SkillEvent};

/// One line about what went wrong.
pub(crate) fn error(message: &str) {
    let line: Vec<&str> = message.lines().collect();
    eprintln!("photon: {}", line.join(" "));
}

/// An error and its causes, each said once: many messages repeat their cause already.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        match text.is_empty() {
            true => cause,
            false if text.contains(&cause) => text,
            false => format!("{text}: {cause}"),
        }
    })
}

/// One line about what is going on.
pub(crate) fn note(message: &str) {
    eprintln!("photon: {message}");
}

/// What stands before what somebody types, on standard error because answers have standard output.
pub(crate) fn prompt(text: &str) {
    eprint!("{text}");
}

/// One line for a program to read, on standard error because answers have standard output.
pub(crate) fn raw_note(line: &str) {
    eprintln!("{line}");
}

/// The value that the share `p` of `sorted` is not above; `None` of nothing.
pub(crate) fn percentile(sorted: &[f32], p: f64) -> Option<f64> {
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map(|value| f64::from(*value))
}

/// Writes a line to standard output.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
}

/// Whether what is printed may be dimmed: at a terminal, unless `NO_COLOR` is set; consoles of Windows are told to take
/// styles, which old ones cannot.
fn has_styles() -> bool {
    io::stdout().is_terminal()
        && !anstyle_query::no_color()
        && anstyle_query::term_supports_color()
        && anstyle_query::windows::enable_ansi_colors().unwrap_or(true)
}

/// Whether somebody closed the pipe we write to.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let is_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_pipe))
}

/// Prints text as it comes and finished answers; remembers the first error of standard output.
#[derive(Debug)]
pub(crate) struct Printer {
    /// Nothing is printed before the end.
    quiet: bool,
    dim: bool,
    thinking: bool,
    /// Width and height of the picture, for places in pixels.
    size: (f32, f32),
    error: Option<io::Error>,
}

impl Printer {
    pub(crate) fn new(quiet: bool, size: Option<(u32, u32)>) -> Self {
        let size = size.map_or((1.0, 1.0), |(w, h)| (w as f32, h as f32));
        Printer { quiet, dim: has_styles(), thinking: false, size, error: None }
    }

    /// Streams text and paths; places are printed together at the end, numbered.
    pub(crate) fn event(&mut self, event: &SkillEvent) {
        if self.quiet || self.error.is_some() {
            return;
        }
        let (begin, end) = if self.dim { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let text = match event {
            SkillEvent::Reasoning(text) => {
                self.thinking = true;
                format!("{begin}{text}{end}")
            }
            SkillEvent::Text(text) if self.thinking => {
                self.thinking = false;
                format!("\n\n{text}")
            }
            SkillEvent::Text(text) | SkillEvent::Path(text) => text.clone(),
            _ => return,
        };
        let mut out = io::stdout().lock();
        self.error = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
    }

    /// Ends an answer.
    pub(crate) fn finish(self, response: &Response) -> io::Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.quiet {
            return Ok(());
        }
        let (w, h) = self.size;
        match &response.answer {
            Answer::Query { .. } | Answer::Caption { .. } => line(""),
            Answer::Detect { objects } if objects.is_empty() => line("nothing found"),
            Answer::Detect { objects } => (1..)
                .zip(objects)
                .try_for_each(|(i, object)| line(&format!("{i}  {}", self.place(object)))),
            Answer::Point { points } => self::points(points, w, h),
            Answer::Segment { path, bbox, parse_error } => {
                match bbox {
                    None if path.is_empty() => line("nothing found")?,
                    None => line("")?,
                    Some(bbox) if path.is_empty() => line(&self.place(bbox))?,
                    Some(bbox) => line(&format!("\n{}", self.place(bbox)))?,
                }
                if let Some(error) = parse_error {
                    note(&format!("the path ends early: {error}"));
                }
                Ok(())
            }
            Answer::Gaze { gaze } => self::points(gaze.as_slice(), w, h),
        }
    }

    /// A box in fractions of the picture and in pixels.
    fn place(&self, bbox: &BoundingBox) -> String {
        let (w, h) = self.size;
        let BoundingBox { x_min, y_min, x_max, y_max } = *bbox;
        let pixels = [x_min * w, y_min * h, x_max * w, y_max * h].map(f32::round);
        let [x0, y0, x1, y1] = pixels;
        format!("{x_min:.3} {y_min:.3} {x_max:.3} {y_max:.3}  ({x0},{y0} to {x1},{y1} px)")
    }
}

fn points(points: &[Point], w: f32, h: f32) -> io::Result<()> {
    if points.is_empty() {
        return line("nothing found");
    }
    (1..).zip(points).try_for_each(|(i, Point { x, y })| {
        line(&format!("{i}  {x:.3} {y:.3}  ({},{} px)", (x * w).round(), (y * h).round()))
    })
}

/// Sizes and times, one line.
pub(crate) fn stats(response: &Response) {
    let m = &response.metrics;
    let speed = m.decode_tokens_per_second();
    let drafts = match m.drafted_tokens {
        0 => String::new(),
        n => {
            let rate = 100.0 * m.accepted_tokens as f64 / n as f64;
            format!(", {} of {n} guessed tokens right ({rate:.0} %)", m.accepted_tokens)
        }
    };
    eprintln!(
        "{} tokens in ({}), {} out; preprocess {:.1} ms, vision {:.1} ms, prefill {:.1} ms, \
         first token after {:.1} ms, decode {:.1} ms ({speed:.1} tokens/s){drafts}",
        m.input_tokens,
        count(m.crops as u64, "crop"),
        m.output_tokens,
        m.preprocess_time_ms,
        m.vision_time_ms,
        m.prefill_time_ms,
        m.ttft_ms,
        m.decode_time_ms,
    );
}

/// So many of something: `1 crop`, `9 crops`.
pub(crate) fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// A byte count for people.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let unit = (n.max(1).ilog2() / 10).min(3) as usize;
    match unit {
        0 => format!("{n} B"),
        _ => format!("{:.1} {}", n as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(super::percentile(&values, 0.5), Some(2.0));
        assert_eq!(super::percentile(&values, 0.95), Some(4.0));
        assert_eq!(super::percentile(&values[..1], 0.01), Some(1.0));
        assert_eq!(super::percentile(&[], 0.5), None);
    }

    #[test]
    fn byte_counts_have_a_fitting_unit() {
        assert_eq!(super::bytes(0), "0 B");
        assert_eq!(super::bytes(1023), "1023 B");
        assert_eq!(super::bytes(1536), "1.5 KiB");
        assert_eq!(super::bytes(3_854_538_968), "3.6 GiB");
    }

    #[test]
    fn a_cause_that_the_message_repeats_is_said_once() {
        let io = std::io::Error::other("disk full");
        let error = anyhow::Error::from(io).context("cannot write: disk full").context("a.png");
        assert_eq!(super::describe(&error), "a.png: cannot write: disk full");
    }

    #[test]
    fn a_closed_pipe_is_found_under_any_context() {
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let error = anyhow::Error::from(pipe).context("writing the answer");
        assert!(super::is_closed_pipe(&error));
        assert!(!super::is_closed_pipe(&anyhow::anyhow!("no")));
    }
}
