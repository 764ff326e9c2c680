//! One step's inputs: rows of tokens from several sequences, packed without padding.
//!
//! [`BatchBuilder`] gathers plain integers on the host; [`BatchBuilder::upload`] sends all of them in
//! one copy, and [`Batch`] is the typed view of that copy on the device.
use photon_core::{Cx, DType, Device, Kernels, Shape, Tensor};

use crate::prompt::Input;

/// One sequence's part of a step.
#[derive(Debug)]
pub struct Row<'a> {
    /// The inputs to compute, in order.
    pub inputs: &'a [Input],
    /// Position of the first of them: how many are computed already.
    pub start: usize,
    /// The sequence's blocks in order; they must reach position `start + inputs.len()`.
    pub block_table: &'a [u32],
    /// First positions that attend both ways; 0 without an image.
    pub prefix_len: usize,
    /// What to add to the index of an [`Input::Image`] to find it in the step's image embeddings.
    pub image_offset: usize,
}

/// Gathers rows.
#[derive(Debug)]
pub struct BatchBuilder {
    block_size: usize,
    ids: Vec<i32>,
    image_rows: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    row_starts: Vec<i32>,
    context_lens: Vec<i32>,
    prefix_lens: Vec<i32>,
    last: Vec<i32>,
    block_tables: Vec<Vec<i32>>,
    coords: Vec<f32>,
    coord_tokens: Vec<i32>,
    sizes: Vec<f32>,
    size_tokens: Vec<i32>,
}

impl BatchBuilder {
    /// Without rows, for a cache of this block size.
    pub fn new(block_size: usize) -> Self {
        BatchBuilder {
            block_size,
            ids: Vec::new(),
            image_rows: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            row_starts: vec![0],
            context_lens: Vec::new(),
            prefix_lens: Vec::new(),
            last: Vec::new(),
            block_tables: Vec::new(),
            coords: Vec::new(),
            coord_tokens: Vec::new(),
            sizes: Vec::new(),
            size_tokens: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If the row is empty or its block table too short.
    pub fn push(&mut self, row: &Row<'_>) {
        assert!(!row.inputs.is_empty(), "a row without inputs");
        for (i, input) in row.inputs.iter().enumerate() {
            let (token, position) = (self.ids.len() as i32, row.start + i);
            let (mut id, mut image_row) = (-1, -1);
            match *input {
                Input::Token(token) => id = token as i32,
                Input::Image(index) => image_row = (row.image_offset + index as usize) as i32,
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
            self.slots.push((block * self.block_size + position % self.block_size) as i32);
        }
        self.row_starts.push(self.ids.len() as i32);
        self.last.push(self.ids.len() as i32 - 1);
        self.context_lens.push((row.start + row.inputs.len()) as i32);
        self.prefix_lens.push(row.prefix_len as i32);
        self.block_tables.push(row.block_table.iter().map(|&b| b as i32).collect());
    }

    /// Sends everything to the device in one copy.
    pub fn upload<D: Kernels>(&self, cx: &mut Cx<'_, D>) -> Batch<D> {
        let max_blocks = self.block_tables.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut tables = vec![-1; self.block_tables.len() * max_blocks];
        for (out, table) in tables.chunks_exact_mut(max_blocks).zip(&self.block_tables) {
            out[..table.len()].copy_from_slice(table);
        }
        let (tokens, rows) = (self.ids.len(), self.block_tables.len());
        let mut pack = Packer::default();
        let ids = pack.ints([tokens], &self.ids);
        let image_rows = pack.ints([tokens], &self.image_rows);
        let positions = pack.ints([tokens], &self.positions);
        let slots = pack.ints([tokens], &self.slots);
        let row_starts = pack.ints([rows + 1], &self.row_starts);
        let context_lens = pack.ints([rows], &self.context_lens);
        let prefix_lens = pack.ints([rows], &self.prefix_lens);
        let last = pack.ints([rows], &self.last);
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
            context_lens: view(context_lens),
            prefix_lens: view(prefix_lens),
            last: view(last),
            block_tables: view(block_tables),
            coords: (!self.coord_tokens.is_empty()).then(|| (view(coords), view(coord_tokens))),
            sizes: (!self.size_tokens.is_empty()).then(|| (view(sizes), view(size_tokens))),
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
    /// `[rows]`.
    pub(crate) context_lens: Tensor<D>,
    /// `[rows]`.
    pub(crate) prefix_lens: Tensor<D>,
    /// `[rows]`: each row's last token.
    pub(crate) last: Tensor<D>,
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

    /// Sequences.
    pub fn rows(&self) -> usize {
        self.last.shape().elements()
    }
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

    fn part(&mut self, shape: Shape, dtype: DType, bytes: impl Iterator<Item = u8>) -> Part {
        // Vector loads of any backend stay aligned.
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let offset = self.bytes.len();
        self.bytes.extend(bytes);
        debug_assert_eq!(self.bytes.len() - offset, shape.elements() * dtype.size());
        Part { offset, shape, dtype }
    }
}
