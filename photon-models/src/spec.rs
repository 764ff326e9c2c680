//! The tensors of a model: what they are called, their shapes, and what loading makes of each.
//!
//! A model's parts say it where they load them, so that who writes a checkpoint knows what may be rounded or
//! quantized without changing what is loaded.
use crate::quant::Part;

/// What loading makes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is used in f32, whatever the type of the weights.
    Exact,
    /// It gets the type of the weights.
    Weight,
    /// It gets the type of the weights, or is quantized as its part is.
    Inner(Part),
}

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name on Hugging Face.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// What becomes of it.
    pub role: Role,
}

/// The tensors of a model, being collected.
#[derive(Debug, Default)]
pub(crate) struct Specs(pub(crate) Vec<Spec>);

impl Specs {
    fn push(&mut self, name: &str, shape: &[usize], role: Role) {
        self.0.push(Spec { name: name.to_owned(), shape: shape.to_vec(), role });
    }

    pub(crate) fn exact(&mut self, name: &str, shape: &[usize]) {
        self.push(name, shape, Role::Exact);
    }

    pub(crate) fn weight(&mut self, name: &str, shape: &[usize]) {
        self.push(name, shape, Role::Weight);
    }

    pub(crate) fn inner(&mut self, part: Part, name: &str, shape: &[usize]) {
        self.push(name, shape, Role::Inner(part));
    }

    /// Of a [`Dense`](crate::layers::Dense).
    pub(crate) fn dense(&mut self, name: &str, n: usize, k: usize) {
        self.weight(&format!("{name}.weight"), &[n, k]);
        self.exact(&format!("{name}.bias"), &[n]);
    }

    /// Of a [`Dense`](crate::layers::Dense) inside of a block.
    pub(crate) fn inner_dense(&mut self, part: Part, name: &str, n: usize, k: usize) {
        self.inner(part, &format!("{name}.weight"), &[n, k]);
        self.exact(&format!("{name}.bias"), &[n]);
    }

    /// Of a [`Norm`](crate::layers::Norm).
    pub(crate) fn norm(&mut self, name: &str, dim: usize) {
        self.exact(&format!("{name}.weight"), &[dim]);
        self.exact(&format!("{name}.bias"), &[dim]);
    }
}
