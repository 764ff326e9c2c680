//! One step's inputs: rows of tokens from several sequences, packed without padding.
//!
//! [`BatchBuilder`] gathers plain integers on the host; [`BatchBuilder::upload`] sends all of them in
//! one copy, and [`Batch`] is the typed view of that copy on the device. A builder is cleared and used
//! again, so that a step allocates nothing once its vectors have grown.
//!
//! What a token sees follows from the inputs: everything up to itself, and in a picture, up to the
//! picture's end.
use photon_core::{Cx, DType, Device, Kernels, Masks, SampleParams, Shape, Tensor};

use crate::prompt::{Input, spans};

/// One sequence's part of a step.
#[derive(Debug)]
pub struct Row<'a> {
    /// The inputs to compute, in order.
    pub inputs: &'a [Input],
    /// Ids guessed to follow them, computed too; only of a row that draws.
    pub draft: &'a [u32],
    /// Position of the first of them: how many are computed already.
    pub start: usize,
    /// The sequence's blocks in order; they must reach the end of the draft.
    pub block_table: &'a [u32],
    /// Where each of the sequence's pictures is in the step's image embeddings, counted in pictures.
    /// Only those whose patches are among the inputs are asked for.
    pub images: &'a [usize],
    /// The slot of its adapter, if it has one.
    pub adapter: Option<usize>,
    /// How the token after the last input is drawn, and, each at its own position, those after the draft's
    /// ids; `None` if the row does not get so far.
    pub sample: Option<SampleParams>,
    /// The ids that the first of them may be, one bit each (see [`Masks`]); any if `None`.
    pub mask: Option<&'a [i32]>,
}

/// What tokens of a step are drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Draws {
    /// Whether some are drawn from all ids.
    pub words: bool,
    /// Whether some are drawn from the marks: those of whose row only marks are allowed, and that has no
    /// mask.
    pub marks: bool,
}

/// Gathers rows.
#[derive(Debug)]
pub struct BatchBuilder {
    block_size: usize,
    marks: [u32; 4],
    /// Positions of a picture.
    patches: usize,
    /// Least columns of the block tables.
    min_blocks: usize,
    ids: Vec<i32>,
    image_rows: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    row_starts: Vec<i32>,
    visible: Vec<i32>,
    /// The tokens after which one is drawn.
    drawing: Vec<i32>,
    /// The slots of the tokens' adapters, and of the drawing tokens'; -1 without one.
    adapters: Vec<i32>,
    drawing_adapters: Vec<i32>,
    params: Vec<SampleParams>,
    /// Of each token that is drawn, padding not counted, whether it is drawn from the marks; its parameters
    /// name places among them then.
    from_marks: Vec<bool>,
    /// The masks of the rows that have one, one after the other, and that of each token that is drawn; -1
    /// without one.
    masks: Vec<i32>,
    mask_rows: Vec<i32>,
    /// Words of a mask; 0 if no row has one.
    mask_words: usize,
    /// All rows' tables one after the other, and where each ends.
    block_tables: Vec<i32>,
    table_ends: Vec<usize>,
    coords: Vec<f32>,
    coord_tokens: Vec<i32>,
    sizes: Vec<f32>,
    size_tokens: Vec<i32>,
}

impl BatchBuilder {
    /// Without rows, for a cache of this block size, pictures of so many patches and these
    /// [marks](crate::config::TokenConfig::marks).
    pub fn new(block_size: usize, patches: usize, marks: [u32; 4]) -> Self {
        BatchBuilder {
            block_size,
            marks,
            patches,
            min_blocks: 1,
            ids: Vec::new(),
            image_rows: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            row_starts: vec![0],
            visible: Vec::new(),
            drawing: Vec::new(),
            adapters: Vec::new(),
            drawing_adapters: Vec::new(),
            params: Vec::new(),
            from_marks: Vec::new(),
            masks: Vec::new(),
            mask_rows: Vec::new(),
            mask_words: 0,
            block_tables: Vec::new(),
            table_ends: Vec::new(),
            coords: Vec::new(),
            coord_tokens: Vec::new(),
            sizes: Vec::new(),
            size_tokens: Vec::new(),
        }
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.min_blocks = 1;
        self.row_starts.truncate(1);
        let Self { ids, image_rows, positions, slots, visible, .. } = self;
        for list in [ids, image_rows, positions, slots, visible] {
            list.clear();
        }
        self.drawing.clear();
        self.params.clear();
        self.from_marks.clear();
        self.masks.clear();
        self.mask_rows.clear();
        self.mask_words = 0;
        self.adapters.clear();
        self.drawing_adapters.clear();
        self.block_tables.clear();
        self.table_ends.clear();
        self.coords.clear();
        self.coord_tokens.clear();
        self.sizes.clear();
        self.size_tokens.clear();
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If the row is empty, its block table too short, a picture cut, or it has a draft and does not draw.
    pub fn push(&mut self, row: &Row<'_>) {
        assert!(!row.inputs.is_empty(), "a row without inputs");
        assert!(
            row.draft.is_empty() || row.sample.is_some(),
            "a draft in a row that draws nothing"
        );
        let first = self.ids.len();
        let draft = row.draft.iter().map(|&id| Input::Token(id));
        for (i, input) in row.inputs.iter().copied().chain(draft).enumerate() {
            let (token, position) = (self.ids.len() as i32, row.start + i);
            let (mut id, mut image_row) = (-1, -1);
            match input {
                Input::Token(token) => id = token as i32,
                Input::Image(index) => {
                    let (picture, patch) =
                        (index as usize / self.patches, index as usize % self.patches);
                    image_row = (row.images[picture] * self.patches + patch) as i32;
                }
                Input::Coord(value) => {
                    self.coords.push(value);
                    self.coord_tokens.push(token);
                }
                Input::Size(values) => {
                    self.sizes.extend(values);
                    self.size_tokens.push(token);
                }
            }
            let block = row.block_table[position / self.block_size] as usize;
            self.ids.push(id);
            self.image_rows.push(image_row);
            self.positions.push(position as i32);
            self.visible.push(position as i32 + 1);
            self.slots.push((block * self.block_size + position % self.block_size) as i32);
        }
        let (start, end) = (row.start, row.start + row.inputs.len());
        let mut whole = 0;
        for span in spans(row.inputs, start, self.patches) {
            assert!(start <= span.start && span.end <= end, "{start}..{end} cuts {span:?}");
            let tokens = first + span.start - start..first + span.end - start;
            self.visible[tokens].fill(span.end as i32);
            whole += self.patches;
        }
        let patches = self.image_rows[first..].iter().filter(|&&row| row >= 0).count();
        assert_eq!(patches, whole, "{start}..{end} begins inside of a picture");
        let adapter = row.adapter.map_or(-1, |slot| slot as i32);
        self.adapters.resize(self.ids.len(), adapter);
        if let Some(params) = row.sample {
            let first = self.ids.len() - 1 - row.draft.len();
            let mask = row.mask.map_or(-1, |mask| (self.masks.len() / mask.len()) as i32);
            if let Some(mask) = row.mask {
                self.mask_words = mask.len();
                self.masks.extend_from_slice(mask);
            }
            let is_free = row.mask.is_none() && params.banned == [-1; 4];
            let places = among(&self.marks, params.allowed).filter(|_| is_free);
            let params = SampleParams { allowed: places.unwrap_or(params.allowed), ..params };
            for (i, token) in (first..self.ids.len()).enumerate() {
                self.from_marks.push(places.is_some());
                self.drawing.push(token as i32);
                self.drawing_adapters.push(adapter);
                self.params.push(SampleParams { position: params.position + i as u32, ..params });
                self.mask_rows.push(if i == 0 { mask } else { -1 });
            }
        }
        self.block_tables.extend(row.block_table.iter().map(|&b| b as i32));
        self.end_row();
    }

    fn end_row(&mut self) {
        self.row_starts.push(self.ids.len() as i32);
        self.table_ends.push(self.block_tables.len());
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.table_ends.len()
    }

    /// Of each token that is drawn, in order, whether what is drawn is a place among the marks.
    pub fn from_marks(&self) -> &[bool] {
        &self.from_marks
    }

    /// What the tokens are drawn from; neither if none is drawn.
    pub fn draws(&self) -> Draws {
        let marks = self.from_marks.contains(&true);
        Draws { words: self.from_marks.contains(&false), marks }
    }

    /// Whether an input is a coordinate.
    pub fn has_coords(&self) -> bool {
        !self.coord_tokens.is_empty()
    }

    /// Whether an input is a size.
    pub fn has_sizes(&self) -> bool {
        !self.size_tokens.is_empty()
    }

    /// Whether a row has an adapter.
    pub fn has_adapters(&self) -> bool {
        self.adapters.iter().any(|&slot| slot >= 0)
    }

    /// Whether a row has a mask.
    pub fn has_masks(&self) -> bool {
        self.mask_words > 0
    }

    /// Brings a step of one token per row to a fixed form, so that the work recorded for it depends on
    /// nothing but the arguments and what the builder says it [`draws`](Self::draws) and has: `rows` rows,
    /// tables of `max_blocks`, and of coordinates, sizes and masks none or as many as rows. The rows added
    /// compute nothing that is kept.
    ///
    /// # Panics
    /// If a row has more than one token or draws none, or there are more rows already.
    pub fn pad(&mut self, rows: usize, max_blocks: usize) {
        let is_decode = self.ids.len() == self.rows() && self.drawing.len() == self.rows();
        assert!(is_decode && self.rows() <= rows, "pad takes steps of one token per row");
        self.min_blocks = max_blocks;
        self.masks.resize(rows * self.mask_words, 0);
        while self.rows() < rows {
            self.drawing.push(self.ids.len() as i32);
            self.params.push(SampleParams::GREEDY);
            self.mask_rows.push(-1);
            for list in [&mut self.ids, &mut self.image_rows, &mut self.positions, &mut self.slots]
            {
                list.push(-1);
            }
            self.adapters.push(-1);
            self.drawing_adapters.push(-1);
            self.visible.push(0);
            self.end_row();
        }
        if self.has_coords() {
            self.coords.resize(rows, 0.0);
            self.coord_tokens.resize(rows, -1);
        }
        if self.has_sizes() {
            self.sizes.resize(2 * rows, 0.0);
            self.size_tokens.resize(rows, -1);
        }
    }

    /// Sends everything to the device in one copy. If no row draws a token, the first row's last token
    /// stands in, so that the step has an output.
    pub fn upload<D: Kernels>(&self, cx: &mut Cx<'_, D>) -> Batch<D> {
        let starts = || [0].into_iter().chain(self.table_ends.iter().copied());
        let widest = starts().zip(&self.table_ends).map(|(start, end)| end - start).max();
        let max_blocks = widest.unwrap_or(0).max(self.min_blocks);
        let (tokens, rows) = (self.ids.len(), self.rows());
        let mut tables = vec![-1; rows * max_blocks];
        let spans = starts().zip(&self.table_ends).map(|(start, &end)| start..end);
        for (out, span) in tables.chunks_exact_mut(max_blocks).zip(spans) {
            out[..span.len()].copy_from_slice(&self.block_tables[span]);
        }
        let (drawing, drawing_adapters, params) = match self.drawing.is_empty() {
            true => {
                (&[self.row_starts[1] - 1][..], &self.adapters[..1], &[SampleParams::GREEDY][..])
            }
            false => (&self.drawing[..], &self.drawing_adapters[..], &self.params[..]),
        };
        let mut pack = Packer::default();
        let ids = pack.ints([tokens], &self.ids);
        let image_rows = pack.ints([tokens], &self.image_rows);
        let positions = pack.ints([tokens], &self.positions);
        let slots = pack.ints([tokens], &self.slots);
        let row_starts = pack.ints([rows + 1], &self.row_starts);
        let visible = pack.ints([tokens], &self.visible);
        let params = pack.records(params);
        let drawing = pack.ints([drawing.len()], drawing);
        let adapters = self.has_adapters().then(|| {
            let all = pack.ints([tokens], &self.adapters);
            [all, pack.ints([drawing_adapters.len()], drawing_adapters)]
        });
        let masks = self.has_masks().then(|| {
            let shape = [self.masks.len() / self.mask_words, self.mask_words];
            [pack.ints(shape, &self.masks), pack.ints([self.mask_rows.len()], &self.mask_rows)]
        });
        let block_tables = pack.ints([rows, max_blocks], &tables);
        let coords = pack.floats([self.coord_tokens.len(), 1], &self.coords);
        let coord_tokens = pack.ints([self.coord_tokens.len()], &self.coord_tokens);
        let sizes = pack.floats([self.size_tokens.len(), 2], &self.sizes);
        let size_tokens = pack.ints([self.size_tokens.len()], &self.size_tokens);
        let mut buffer = cx.tensor([pack.bytes.len()], DType::U8);
        cx.upload(&mut buffer, &pack.bytes);
        let view = |part: Part| buffer.bytes_as(part.offset, part.shape, part.dtype);
        Batch {
            ids: view(ids),
            image_rows: self.image_rows.iter().any(|&r| r >= 0).then(|| view(image_rows)),
            positions: view(positions),
            slots: view(slots),
            row_starts: view(row_starts),
            visible: view(visible),
            drawing: view(drawing),
            params: view(params),
            masks: masks.map(|parts| parts.map(view)),
            adapters: adapters.map(|parts| parts.map(view)),
            block_tables: view(block_tables),
            coords: self.has_coords().then(|| (view(coords), view(coord_tokens))),
            sizes: self.has_sizes().then(|| (view(sizes), view(size_tokens))),
        }
    }
}

/// One step's inputs on the device.
#[derive(Debug)]
pub struct Batch<D: Device> {
    /// `[tokens]`: token ids; -1 where the input is something else.
    pub(crate) ids: Tensor<D>,
    /// `[tokens]`: rows of the image embeddings; -1 where the input is something else.
    pub(crate) image_rows: Option<Tensor<D>>,
    /// `[tokens]`.
    pub(crate) positions: Tensor<D>,
    /// `[tokens]`.
    pub(crate) slots: Tensor<D>,
    /// `[rows + 1]`.
    pub(crate) row_starts: Tensor<D>,
    /// `[tokens]`: how many first positions each token sees.
    pub(crate) visible: Tensor<D>,
    /// `[drawn]`: the tokens after which one is drawn.
    pub(crate) drawing: Tensor<D>,
    /// `[drawn, size_of::<SampleParams>()]`, u8: how they are drawn.
    pub params: Tensor<D>,
    /// `[masks, words]` and `[drawn]`: the ids it may be, see [`Batch::masks`].
    masks: Option<[Tensor<D>; 2]>,
    /// `[tokens]` and `[drawn]`: the slots of their adapters, or -1.
    pub(crate) adapters: Option<[Tensor<D>; 2]>,
    /// `[rows, max_blocks]`, padded with -1.
    pub(crate) block_tables: Tensor<D>,
    /// `[n, 1]` values and `[n]` the tokens they stand at.
    pub(crate) coords: Option<(Tensor<D>, Tensor<D>)>,
    /// `[n, 2]` values and `[n]` the tokens they stand at.
    pub(crate) sizes: Option<(Tensor<D>, Tensor<D>)>,
}

impl<D: Device> Batch<D> {
    /// Tokens in all rows.
    pub fn tokens(&self) -> usize {
        self.ids.shape().elements()
    }

    /// What ids may be drawn, if that is restricted.
    pub fn masks(&self) -> Option<Masks<'_, D>> {
        self.masks.as_ref().map(|[bits, rows]| Masks { bits, rows })
    }

    /// Tokens that are drawn: one in a row that draws, and one for each of its draft.
    pub fn drawn(&self) -> usize {
        self.drawing.shape().elements()
    }
}

/// `allowed` as places among the marks, if it names any and nothing else.
fn among(marks: &[u32; 4], allowed: [i32; 4]) -> Option<[i32; 4]> {
    let mut places = [-1; 4];
    for (place, id) in places.iter_mut().zip(allowed).filter(|(_, id)| *id >= 0) {
        *place = marks.iter().position(|&mark| mark as i32 == id)? as i32;
    }
    (places != [-1; 4]).then_some(places)
}

struct Part {
    offset: usize,
    shape: Shape,
    dtype: DType,
}

#[derive(Default)]
struct Packer {
    bytes: Vec<u8>,
}

impl Packer {
    fn ints(&mut self, shape: impl Into<Shape>, values: &[i32]) -> Part {
        self.part(shape.into(), DType::I32, values.iter().flat_map(|v| v.to_le_bytes()))
    }

    fn floats(&mut self, shape: impl Into<Shape>, values: &[f32]) -> Part {
        self.part(shape.into(), DType::F32, values.iter().flat_map(|v| v.to_le_bytes()))
    }

    fn records(&mut self, params: &[SampleParams]) -> Part {
        let shape = [params.len(), size_of::<SampleParams>()];
        self.part(shape.into(), DType::U8, params.iter().flat_map(bytemuck::bytes_of).copied())
    }

    fn part(&mut self, shape: Shape, dtype: DType, bytes: impl Iterator<Item = u8>) -> Part {
        // Vector loads of any backend stay aligned.
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let offset = self.bytes.len();
        self.bytes.extend(bytes);
        debug_assert_eq!(self.bytes.len() - offset, shape.elements() * dtype.size());
        Part { offset, shape, dtype }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BOS, two pictures of 4 patches with a word between, a word.
    fn inputs() -> Vec<Input> {
        let pictures = |rows: std::ops::Range<u32>| rows.map(Input::Image);
        let first = [Input::Token(0)].into_iter().chain(pictures(0..4));
        first.chain([Input::Token(7)]).chain(pictures(4..8)).chain([Input::Token(8)]).collect()
    }

    fn push(batch: &mut BatchBuilder, start: usize, end: usize) {
        let (inputs, block_table) = (&inputs()[start..end], &[3, 5, 1, 4][..]);
        let (adapter, sample) = (None, None);
        batch.push(&Row {
            inputs,
            draft: &[],
            start,
            block_table,
            images: &[2, 0],
            adapter,
            sample,
            mask: None,
        });
    }

    #[test]
    fn a_picture_sees_itself_both_ways_and_is_taken_from_its_slot() {
        let mut batch = BatchBuilder::new(4, 4, [0; 4]);
        push(&mut batch, 0, 11);
        assert_eq!(batch.visible, [5, 5, 5, 5, 5, 6, 10, 10, 10, 10, 11]);
        assert_eq!(batch.image_rows, [-1, 8, 9, 10, 11, -1, 0, 1, 2, 3, -1]);
        batch.clear();
        push(&mut batch, 5, 6);
        push(&mut batch, 6, 11);
        assert_eq!(batch.visible, [6, 10, 10, 10, 10, 11]);
        assert_eq!(batch.image_rows, [-1, 0, 1, 2, 3, -1]);
    }

    #[test]
    #[should_panic(expected = "0..3 cuts 0..5")]
    fn a_row_that_ends_inside_of_a_picture_is_a_bug() {
        push(&mut BatchBuilder::new(4, 4, [0; 4]), 0, 3);
    }

    #[test]
    #[should_panic(expected = "8..11 begins inside of a picture")]
    fn a_row_that_begins_inside_of_a_picture_is_a_bug() {
        push(&mut BatchBuilder::new(4, 4, [0; 4]), 8, 11);
    }

    #[test]
    #[should_panic(expected = "1..6 cuts 0..5")]
    fn bos_belongs_to_the_picture_after_it() {
        push(&mut BatchBuilder::new(4, 4, [0; 4]), 1, 6);
    }
}
