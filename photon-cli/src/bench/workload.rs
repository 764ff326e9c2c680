//! What is asked: pictures of charts and questions about them, drawn from a seed.
//!
//! The same seed gives the same files and words on every machine. Sizes follow the pictures of chart
//! questions: most are cut into nine crops by Moondream 2, a fifth is too narrow to be cut. The first
//! pictures are asked about twice in a row, so that a cache has something to find. Questions mean
//! nothing; what counts is how many tokens they have.
use std::path::Path;

use anyhow::Context;
use image::{
    ExtendedColorType, ImageEncoder,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use serde_json::json;

use crate::{args::BenchAnswer, draw::chart, rng::Rng};

/// Questions per picture of the full workload.
const QUESTIONS: usize = 500;
const PICTURES: usize = 302;

/// Streams of random numbers: pictures have those below.
const WORDS: u64 = 1 << 32;
const WARM_UP: u64 = 1 << 33;

#[derive(Debug)]
pub(super) struct Workload {
    pub(super) seed: u64,
    /// PNG files.
    pub(super) pictures: Vec<Vec<u8>>,
    /// The picture of each question.
    pub(super) asks: Vec<usize>,
    /// Pictures of the same kind that no question is about.
    pub(super) warm_up: Vec<Vec<u8>>,
}

/// What a model's questions are made of.
#[derive(Debug)]
pub(super) struct Alphabet {
    /// Tokens of a prompt around its question.
    pub(super) template: usize,
    /// Letters that are one token each, with a space before them.
    pub(super) letters: Vec<char>,
}

/// How many questions belong to so many pictures.
pub(super) fn usual_questions(pictures: usize) -> usize {
    (pictures * QUESTIONS + PICTURES / 2) / PICTURES
}

impl Workload {
    /// # Panics
    /// Unless each picture has one question or two.
    pub(super) fn draw(seed: u64, pictures: usize, questions: usize) -> Self {
        assert!((pictures..=2 * pictures).contains(&questions), "one question or two per picture");
        let twice = questions - pictures;
        let times = |picture| if picture < twice { 2 } else { 1 };
        let asks = (0..pictures).flat_map(|picture| vec![picture; times(picture)]).collect();
        let draw = |streams| in_parallel(streams, |stream| file(&mut Rng::new(seed, stream)));
        Workload {
            seed,
            pictures: draw((0..pictures as u64).collect()),
            asks,
            warm_up: draw((WARM_UP..WARM_UP + 4).collect()),
        }
    }

    /// The question with that index: as many letters as make a prompt of the length that answers of
    /// this kind have.
    pub(super) fn question(&self, index: usize, answer: BenchAnswer, of: &Alphabet) -> String {
        let rng = &mut Rng::new(self.seed, WORDS + index as u64);
        let tokens = match answer {
            BenchAnswer::Direct => 39,
            BenchAnswer::Thought => rng.between(15, 21) as usize,
        };
        let count = tokens.saturating_sub(of.template).max(1);
        let letters: Vec<_> = (0..count).map(|_| rng.pick(&of.letters).to_string()).collect();
        letters.join(" ")
    }

    /// Bytes of a picture, on average.
    pub(super) fn picture_bytes(&self) -> usize {
        self.pictures.iter().map(Vec::len).sum::<usize>() / self.pictures.len()
    }

    /// Writes the pictures and a file for `photon batch`.
    pub(super) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for (i, picture) in self.pictures.iter().enumerate() {
            write(&format!("{i:03}.png"), picture)?;
        }
        let alphabet = Alphabet { template: 0, letters: ('a'..='z').collect() };
        let line = |(i, picture): (usize, &usize)| {
            let question = self.question(i, BenchAnswer::Direct, &alphabet);
            let image = format!("{picture:03}.png");
            json!({"id": i, "skill": "query", "image_path": image, "question": question,
                "reasoning": false})
            .to_string()
        };
        let lines: Vec<String> = self.asks.iter().enumerate().map(line).collect();
        write("requests.jsonl", (lines.join("\n") + "\n").as_bytes())
    }
}

/// A chart as a PNG file.
fn file(rng: &mut Rng) -> Vec<u8> {
    let (width, height) = size(rng);
    let mut file = Vec::new();
    // As plotting programs write them.
    PngEncoder::new_with_quality(&mut file, CompressionType::Level(6), FilterType::Adaptive)
        .write_image(&chart(rng, width, height), width, height, ExtendedColorType::Rgb8)
        .expect("a picture of this size can be written to memory");
    file
}

/// Width and height.
fn size(rng: &mut Rng) -> (u32, u32) {
    match rng.between(0, 100) {
        0..60 => (800, rng.between(500, 701)),
        60..75 => (850, 600),
        75..80 => (640, 700),
        _ => (310, rng.between(300, 701)),
    }
}

/// `make` of each, in order, on all cores.
fn in_parallel(streams: Vec<u64>, make: impl Fn(u64) -> Vec<u8> + Sync) -> Vec<Vec<u8>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let make = &make;
    std::thread::scope(|scope| {
        let parts = streams.chunks(streams.len().div_ceil(cores).max(1));
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(|&stream| make(stream)).collect()))
            .collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, Vec<Vec<u8>>>| part.join();
        parts.into_iter().flat_map(|part| join(part).expect("drawing does not fail")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_the_same_for_the_same_seed() {
        let [a, b, c] = [(1, 3), (1, 3), (2, 3)].map(|(seed, n)| Workload::draw(seed, n, 5));
        assert_eq!(a.pictures, b.pictures);
        assert_ne!(a.pictures, c.pictures);
        assert_eq!(a.asks, [0, 0, 1, 1, 2]);
        let alphabet = Alphabet { template: 6, letters: vec!['x', 'y', 'z'] };
        let question = |w: &Workload, i| w.question(i, BenchAnswer::Direct, &alphabet);
        assert_eq!(question(&a, 1), question(&b, 1));
        assert_ne!(question(&a, 1), question(&a, 2));
        assert_eq!(question(&a, 1).split(' ').count(), 33);
        let thought = a.question(1, BenchAnswer::Thought, &alphabet).split(' ').count();
        assert!((9..=14).contains(&thought), "{thought}");
    }

    #[test]
    fn pictures_are_files_of_a_usual_size() {
        let bytes = Workload::draw(0, 24, 24).picture_bytes();
        assert!((30_000..60_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn the_full_workload_has_its_proportions() {
        assert_eq!(usual_questions(302), 500);
        assert_eq!(usual_questions(1), 2);
        assert_eq!(usual_questions(60), 99);
        let sizes: Vec<_> = (0..10_000).map(|i| size(&mut Rng::new(3, i))).collect();
        let share = |wanted: fn(&(u32, u32)) -> bool| {
            sizes.iter().filter(|size| wanted(size)).count() as f32 / sizes.len() as f32
        };
        for (share, expected) in [
            (share(|size| size.0 == 800 && (500..=700).contains(&size.1)), 0.6),
            (share(|size| *size == (850, 600)), 0.15),
            (share(|size| *size == (640, 700)), 0.05),
            (share(|size| size.0 == 310 && (300..=700).contains(&size.1)), 0.2),
        ] {
            assert!((share - expected).abs() < 0.02, "{share} {expected}");
        }
    }
}
