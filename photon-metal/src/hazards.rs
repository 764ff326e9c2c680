//! Which launches may run at once: what has been read and written since the last barrier.
//!
//! A launch must come after a barrier if it reads what a launch since the last one writes, or writes what
//! one reads or writes. Bytes are compared, not buffers: two columns of one tensor, or two tensors in one
//! arena, do not meet.

/// Bytes of a tensor: rows at equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Address of the first byte.
    pub(crate) start: u64,
    /// Bytes of a row.
    pub(crate) row_bytes: u64,
    /// Bytes from a row to the next.
    pub(crate) stride: u64,
    /// Rows.
    pub(crate) rows: u64,
}

impl Span {
    pub(crate) fn bytes(start: u64, bytes: usize) -> Span {
        Span { start, row_bytes: bytes as u64, stride: bytes as u64, rows: 1 }
    }

    fn is_empty(self) -> bool {
        self.row_bytes == 0 || self.rows == 0
    }

    fn end(self) -> u64 {
        self.start + (self.rows - 1) * self.stride + self.row_bytes
    }

    /// Whether a byte may be of both. Never wrongly `false`.
    fn meets(self, other: Span) -> bool {
        if self.is_empty() || other.is_empty() {
            return false;
        }
        if self.end() <= other.start || other.end() <= self.start {
            return false;
        }
        // Columns of equally long rows: what counts is where in a row they lie.
        if self.rows > 1 && other.rows > 1 && self.stride == other.stride {
            let ahead = (i128::from(other.start) - i128::from(self.start))
                .rem_euclid(i128::from(self.stride)) as u64;
            return ahead < self.row_bytes || self.stride - ahead < other.row_bytes;
        }
        true
    }
}

/// What launches since the last barrier read and write, and what the next one will.
#[derive(Debug, Default)]
pub(crate) struct Hazards {
    read: Vec<Span>,
    written: Vec<Span>,
    next_reads: Vec<Span>,
    next_writes: Vec<Span>,
    /// Whether what came before is not known, so that nothing may run beside it.
    is_fenced: bool,
}

impl Hazards {
    /// The next launch reads these bytes.
    pub(crate) fn reads(&mut self, span: Span) {
        self.next_reads.push(span);
    }

    /// The next launch writes these bytes, and may read them.
    pub(crate) fn writes(&mut self, span: Span) {
        self.next_writes.push(span);
    }

    /// Bytes that the next launch reads and writes, those of both twice.
    pub(crate) fn next_bytes(&self) -> u64 {
        self.next_reads.iter().chain(&self.next_writes).map(|s| s.rows * s.row_bytes).sum()
    }

    /// The next launch takes place: whether it needs a barrier first.
    pub(crate) fn launch(&mut self) -> bool {
        let is_hit = |list: &[Span], by: &[Span]| {
            by.iter().any(|span| list.iter().any(|other| span.meets(*other)))
        };
        let needs_barrier = self.is_fenced
            || is_hit(&self.written, &self.next_reads)
            || is_hit(&self.written, &self.next_writes)
            || is_hit(&self.read, &self.next_writes);
        if needs_barrier {
            self.read.clear();
            self.written.clear();
            self.is_fenced = false;
        }
        self.read.append(&mut self.next_reads);
        self.written.append(&mut self.next_writes);
        needs_barrier
    }

    /// The next launch does not take place after all.
    pub(crate) fn forget_next(&mut self) {
        self.next_reads.clear();
        self.next_writes.clear();
    }

    /// Whether nothing has run since the last barrier.
    pub(crate) fn is_clear(&self) -> bool {
        !self.is_fenced && self.read.is_empty() && self.written.is_empty()
    }

    /// Work of unknown reads and writes took place.
    pub(crate) fn fence(&mut self) {
        self.read.clear();
        self.written.clear();
        self.is_fenced = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs launches, each `r 0..4 w 8..12`, and shows where barriers stand: `. | .`.
    fn check(launches: &[&str], expected: &str) {
        let mut hazards = Hazards::default();
        let mut shown = String::new();
        for launch in launches {
            let words: Vec<&str> = launch.split_whitespace().collect();
            for pair in words.chunks(2) {
                let (from, to) = pair[1].split_once("..").expect("a range");
                let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
                let span = Span::bytes(from, (to - from) as usize);
                if pair[0] == "r" { hazards.reads(span) } else { hazards.writes(span) }
            }
            shown += if hazards.launch() { "|." } else { "." };
        }
        assert_eq!(shown, expected, "{launches:?}");
    }

    #[test]
    fn what_depends_on_nothing_overlaps() {
        check(&["r 0..8 w 8..16", "r 0..8 w 16..24", "r 0..4 w 24..32"], "...");
    }

    #[test]
    fn a_read_waits_for_the_write_and_a_write_for_both() {
        check(&["w 0..8", "r 4..5 w 8..9"], ".|.");
        check(&["r 0..8 w 8..9", "w 7..8"], ".|.");
        check(&["w 0..8", "w 7..9"], ".|.");
        check(&["w 0..8", "r 8..9", "r 0..1", "r 0..8", "w 8..9"], "..|...");
    }

    #[test]
    fn a_barrier_settles_all_that_came_before() {
        check(&["w 0..8", "w 8..16", "r 0..8", "r 8..16"], "..|..");
    }

    #[test]
    fn empty_spans_meet_nothing() {
        check(&["w 0..8", "r 4..4", "w 3..3"], "...");
    }

    #[test]
    fn columns_of_one_matrix_do_not_meet() {
        let columns = |from: u64, to: u64| Span {
            start: 1000 + from,
            row_bytes: to - from,
            stride: 100,
            rows: 5,
        };
        assert!(!columns(0, 40).meets(columns(40, 100)));
        assert!(!columns(40, 100).meets(columns(0, 40)));
        assert!(columns(0, 41).meets(columns(40, 100)));
        assert!(columns(40, 100).meets(columns(0, 41)));
        // A later row of the same columns, and columns that run over a row's end.
        assert!(columns(0, 40).meets(columns(200, 240)));
        assert!(columns(0, 10).meets(Span { row_bytes: 20, ..columns(90, 100) }));
        // Another distance of rows: only beginnings and ends are compared.
        assert!(columns(0, 40).meets(Span { stride: 90, ..columns(40, 50) }));
        assert!(!columns(0, 40).meets(Span { start: 1440, stride: 90, ..columns(0, 10) }));
    }
}
