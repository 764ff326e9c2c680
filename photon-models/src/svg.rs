//! The outlines of segment: tokens to an SVG path, piece by piece.
//!
//! Moondream 3 spells a path in single tokens: the letter of a command, or a whole number, a minus apart
//! from its digits; 960 of them span the box of the object. [`PathReader`] takes one token after the
//! other and gives a command back as soon as it has its arguments, so that pieces joined together are
//! the path, and the path is valid wherever it ends. Deliberately absent: curves and pixels.

/// What spans the width and the height of the object's box.
const UNITS: f64 = 960.0;

/// Why tokens are no path. What came before stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Neither a command nor a number.
    #[error("unexpected SVG token '{0}'")]
    Token(String),
    /// A path that does not begin by moving somewhere.
    #[error("the SVG path begins with {0} instead of M")]
    NoMove(char),
    /// A number at the beginning, or after a command that takes none.
    #[error("SVG number {0} belongs to no command")]
    NoCommand(i32),
    /// A command without all of its arguments.
    #[error("incomplete SVG command {letter}: {given} of {takes} numbers")]
    Incomplete {
        /// The command.
        letter: char,
        /// Numbers that came, since its last complete group.
        given: usize,
        /// Numbers it takes.
        takes: usize,
    },
    /// An arc whose flag is neither 0 nor 1.
    #[error("SVG command {letter} has the flag {flag}, which is neither 0 nor 1")]
    Flag {
        /// The command.
        letter: char,
        /// The flag.
        flag: i32,
    },
}

/// Reads a path. After an error there is nothing more to read.
#[derive(Clone, Debug, Default)]
pub struct PathReader {
    /// The command under way.
    command: Option<Command>,
    /// Its numbers that make no whole group yet.
    numbers: Vec<i32>,
    /// Whether a minus waits for its digits.
    minus: bool,
    /// Whether anything was given back.
    begun: bool,
}

#[derive(Clone, Copy, Debug)]
struct Command {
    letter: char,
    /// Numbers in a group; a command may have several groups.
    takes: usize,
    /// Whether it was given back with a first group.
    begun: bool,
}

impl PathReader {
    /// Takes a token; gives the command or the further group of arguments that it completes.
    ///
    /// # Errors
    /// If the token cannot stand here.
    pub fn push(&mut self, token: &str) -> Result<Option<String>, PathError> {
        if token == "-" && !self.minus {
            self.minus = true;
            return Ok(None);
        }
        if let Some(number) = self.number(token) {
            self.minus = false;
            return self.argument(number);
        }
        match command(token) {
            Some(next) if !self.minus => self.begin(next),
            _ => Err(PathError::Token(token.to_owned())),
        }
    }

    /// Ends the path.
    ///
    /// # Errors
    /// If a command lacks numbers.
    pub fn finish(&self) -> Result<(), PathError> {
        match self.command {
            None if self.minus => Err(PathError::Token("-".to_owned())),
            None => Ok(()),
            Some(Command { letter, takes, begun }) => {
                let given = self.numbers.len();
                match begun && given == 0 && !self.minus {
                    true => Ok(()),
                    false => Err(PathError::Incomplete { letter, given, takes }),
                }
            }
        }
    }

    /// The number a token stands for, with the minus before it.
    fn number(&self, token: &str) -> Option<i32> {
        if token.starts_with('+') {
            return None;
        }
        let sign = if self.minus { "-" } else { "" };
        format!("{sign}{token}").parse().ok()
    }

    fn begin(&mut self, next: Command) -> Result<Option<String>, PathError> {
        self.finish()?;
        if !self.begun && !next.letter.eq_ignore_ascii_case(&'M') {
            return Err(PathError::NoMove(next.letter));
        }
        self.command = Some(next);
        Ok((next.takes == 0).then(|| self.piece()))
    }

    fn argument(&mut self, number: i32) -> Result<Option<String>, PathError> {
        let Some(Command { letter, takes: takes @ 1.., .. }) = self.command else {
            return Err(PathError::NoCommand(number));
        };
        if is_flag(letter, self.numbers.len()) && !(0..=1).contains(&number) {
            return Err(PathError::Flag { letter, flag: number });
        }
        self.numbers.push(number);
        Ok((self.numbers.len() == takes).then(|| self.piece()))
    }

    /// The group that is complete, after its command if it is the first.
    fn piece(&mut self) -> String {
        let command = self.command.as_mut().expect("only a command has arguments");
        let letter = command.letter;
        let mut words = Vec::new();
        if !command.begun {
            words.push(letter.to_string());
        }
        let number = |(i, number): (usize, i32)| match is_scaled(letter, i) {
            true => scaled(number),
            false => number.to_string(),
        };
        words.extend(self.numbers.drain(..).enumerate().map(number));
        let space = if self.begun { " " } else { "" };
        command.begun = true;
        self.begun = true;
        format!("{space}{}", words.join(" "))
    }
}

/// A command by its letter, of either case.
fn command(token: &str) -> Option<Command> {
    let mut letters = token.chars();
    let (Some(letter), None) = (letters.next(), letters.next()) else { return None };
    let takes = match letter.to_ascii_uppercase() {
        'Z' => 0,
        'H' | 'V' => 1,
        'M' | 'L' | 'T' => 2,
        'S' | 'Q' => 4,
        'C' => 6,
        'A' => 7,
        _ => return None,
    };
    Some(Command { letter, takes, begun: false })
}

/// Whether an argument is one of an arc's two flags: `rx ry rotation large sweep x y`.
fn is_flag(letter: char, index: usize) -> bool {
    letter.eq_ignore_ascii_case(&'A') && matches!(index, 3 | 4)
}

/// Whether an argument is a length; an arc's rotation is in degrees.
fn is_scaled(letter: char, index: usize) -> bool {
    !letter.eq_ignore_ascii_case(&'A') || !matches!(index, 2..=4)
}

/// A length as a part of the box, three decimals at most.
fn scaled(number: i32) -> String {
    let text = format!("{:.3}", f64::from(number) / UNITS);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a path, and what is wrong with it.
    fn read<'a>(tokens: impl IntoIterator<Item = &'a str>) -> (Vec<String>, Option<PathError>) {
        let (mut reader, mut pieces) = (PathReader::default(), Vec::new());
        for token in tokens {
            match reader.push(token) {
                Ok(piece) => pieces.extend(piece),
                Err(error) => return (pieces, Some(error)),
            }
        }
        (pieces, reader.finish().err())
    }

    #[track_caller]
    fn check(tokens: &str, path: &str, error: Option<&str>) {
        let (pieces, got) = read(tokens.split_whitespace());
        assert_eq!(pieces.concat(), path, "{tokens}");
        assert_eq!(got.map(|e| e.to_string()).as_deref(), error, "{tokens}");
    }

    #[test]
    fn numbers_become_parts_of_the_box() {
        check("M 0 730 L 0 307 Z", "M 0 0.76 L 0 0.32 Z", None);
        check("M 960 1920 l - 480 1", "M 1 2 l -0.5 0.001", None);
        check("M - 0 00", "M 0 0", None);
        check("m -96 - 96", "m -0.1 -0.1", None);
    }

    #[test]
    fn every_command_takes_its_numbers_and_more_groups_of_them() {
        check("M 0 0 H 96 V 96 h 96 v 96", "M 0 0 H 0.1 V 0.1 h 0.1 v 0.1", None);
        check("M 0 0 96 96 L 0 0 96 0", "M 0 0 0.1 0.1 L 0 0 0.1 0", None);
        check("M 0 0 Q 0 96 96 96 T 0 0", "M 0 0 Q 0 0.1 0.1 0.1 T 0 0", None);
        check("M 0 0 C 0 0 0 96 96 96 s 0 0 96 0", "M 0 0 C 0 0 0 0.1 0.1 0.1 s 0 0 0.1 0", None);
        check("M 0 0 A 96 48 45 1 0 480 960 Z", "M 0 0 A 0.1 0.05 45 1 0 0.5 1 Z", None);
        check("M 0 0 z m 0 0 Z", "M 0 0 z m 0 0 Z", None);
    }

    #[test]
    fn pieces_come_with_the_last_number_and_begin_with_a_space_but_for_the_first() {
        let (pieces, error) = read("M 0 0 L 96 0 96 96 Z".split(' '));
        assert_eq!(pieces, ["M 0 0", " L 0.1 0", " 0.1 0.1", " Z"]);
        assert_eq!(error, None);
    }

    #[test]
    fn what_is_no_path_ends_it_with_a_reason() {
        check("", "", None);
        check("cat", "", Some("unexpected SVG token 'cat'"));
        check("M 0 0 ML 1 2", "M 0 0", Some("unexpected SVG token 'ML'"));
        check("M 0 +7", "", Some("unexpected SVG token '+7'"));
        check("M 0 0 L 9999999999 0", "M 0 0", Some("unexpected SVG token '9999999999'"));
        check("M 0 0 L 0.5 1", "M 0 0", Some("unexpected SVG token '0.5'"));
        check("M 0 0 L - - 5", "M 0 0", Some("unexpected SVG token '-'"));
        check("M 0 0 L 5 - Z", "M 0 0", Some("unexpected SVG token 'Z'"));
        check("-", "", Some("unexpected SVG token '-'"));
        check("L 0 0", "", Some("the SVG path begins with L instead of M"));
        check("12 M", "", Some("SVG number 12 belongs to no command"));
        check("M 0 0 Z - 5", "M 0 0 Z", Some("SVG number -5 belongs to no command"));
        let flag = "SVG command A has the flag 2, which is neither 0 nor 1";
        check("M 0 0 A 9 9 0 0 2 0 0", "M 0 0", Some(flag));
    }

    #[test]
    fn an_incomplete_command_is_named() {
        check("M", "", Some("incomplete SVG command M: 0 of 2 numbers"));
        check("M 0 0 L Z", "M 0 0", Some("incomplete SVG command L: 0 of 2 numbers"));
        check("M 0 0 C 1 2 3 4 5", "M 0 0", Some("incomplete SVG command C: 5 of 6 numbers"));
        check("M 0 0 L 0 96 7", "M 0 0 L 0 0.1", Some("incomplete SVG command L: 1 of 2 numbers"));
        check("M 0 0 h 96 -", "M 0 0 h 0.1", Some("incomplete SVG command h: 0 of 1 numbers"));
    }

    /// The path of tokens that make one, written down all at once.
    fn whole(commands: &[(char, Vec<Vec<i32>>)]) -> String {
        let mut words = Vec::new();
        for (letter, groups) in commands {
            words.push(letter.to_string());
            for group in groups {
                let arc = letter.eq_ignore_ascii_case(&'a');
                words.extend(group.iter().enumerate().map(|(i, n)| {
                    match arc && (2..5).contains(&i) {
                        true => n.to_string(),
                        false => format!("{:.3}", f64::from(*n) / 960.0)
                            .parse::<f64>()
                            .unwrap()
                            .to_string(),
                    }
                }));
            }
        }
        words.join(" ")
    }

    struct Rng(u64);

    impl Rng {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) as usize % n
        }
    }

    #[test]
    fn pieces_of_any_path_join_to_the_whole_and_a_cut_one_is_its_beginning() {
        for seed in 0..500 {
            let rng = &mut Rng(seed);
            let mut commands = vec![('M', vec![vec![0, 0]])];
            for _ in 0..rng.below(9) {
                let letter = char::from(b"MmLlHhVvCcSsQqTtAaZz"[rng.below(20)]);
                let takes = command(&letter.to_string()).unwrap().takes;
                let mut group = || -> Vec<i32> {
                    let number = |i| match is_flag(letter, i) {
                        true => rng.below(2) as i32,
                        false => rng.below(1921) as i32 - 960,
                    };
                    (0..takes).map(number).collect()
                };
                let first = group();
                let more = if takes > 0 { vec![group()] } else { vec![] };
                commands.push((letter, [vec![first], more].concat()));
            }
            let mut tokens = Vec::new();
            for (letter, groups) in &commands {
                tokens.push(letter.to_string());
                for n in groups.iter().flatten() {
                    if *n < 0 {
                        tokens.push("-".to_owned());
                    }
                    tokens.push(n.unsigned_abs().to_string());
                }
            }
            let (pieces, error) = read(tokens.iter().map(String::as_str));
            assert_eq!(error, None, "{tokens:?}");
            let path = pieces.concat();
            assert_eq!(path, whole(&commands), "seed {seed}");
            let cut = rng.below(tokens.len());
            let (pieces, _) = read(tokens[..cut].iter().map(String::as_str));
            assert!(path.starts_with(&pieces.concat()), "seed {seed}, cut at {cut}");
        }
    }

    /// Whatever tokens come, what is given back is a path by itself.
    #[test]
    fn any_tokens_are_survived_and_leave_a_valid_path() {
        let words = [
            "M",
            "m",
            "L",
            "H",
            "v",
            "C",
            "s",
            "Q",
            "t",
            "A",
            "a",
            "Z",
            "z",
            "-",
            "0",
            "1",
            "960",
            "-7",
            "+1",
            "1.5",
            "",
            " ",
            "ML",
            "é",
            "\u{fffd}",
            "😀",
            "2147483648",
            "--",
            "e",
            "NaN",
        ];
        let mut errors = 0;
        for seed in 0..3000 {
            let rng = &mut Rng(seed);
            // Mostly what could be a path, or hardly one would get anywhere.
            let usual = |rng: &mut Rng| {
                let known = if rng.below(20) == 0 { words.len() } else { 17 };
                words[rng.below(known)]
            };
            let tokens: Vec<&str> =
                ["M", "0", "1"].into_iter().chain((0..rng.below(40)).map(|_| usual(rng))).collect();
            let (mut reader, mut path) = (PathReader::default(), String::new());
            for token in &tokens {
                match reader.push(token) {
                    Ok(piece) => path.push_str(&piece.unwrap_or_default()),
                    Err(_) => errors += 1,
                }
            }
            let again = read(tokens.iter().copied()).0.concat();
            assert!(path.starts_with(&again), "{tokens:?}");
            let spelled: Vec<String> = again.split(' ').map(spell).collect();
            let (pieces, error) = read(spelled.iter().map(String::as_str));
            assert_eq!((pieces.len(), error), (read(tokens.iter().copied()).0.len(), None));
        }
        assert!(errors > 1000, "{errors}");
    }

    /// A word of a path as a token that may stand in its place.
    fn spell(word: &str) -> String {
        match word.parse::<f64>() {
            // Flags stay what they are.
            Ok(number) if number == 0.0 || number == 1.0 => word.to_owned(),
            Ok(number) => (number * UNITS).round().to_string(),
            Err(_) => word.to_owned(),
        }
    }
}
