//! Pictures as Python has them: paths, files' bytes, PIL's images, arrays.
use std::path::PathBuf;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use image::{ColorType, ImageEncoder as _, codecs::png::PngEncoder};
use photon::{Image, ImageSource, OpenError};
use photon_server::wire;
use pyo3::{
    prelude::*,
    types::{PyBytes, PyList, PyMemoryView, PyString, PyTuple},
};

use crate::error;

/// A picture that was decoded once and is in the engine's cache: what is asked about it next begins at the words.
/// Made by `Model.encode_image`.
#[pyclass(frozen, module = "photon")]
pub(crate) struct EncodedImage {
    image: Image,
}

impl EncodedImage {
    pub(crate) fn new(image: Image) -> Self {
        EncodedImage { image }
    }
}

#[pymethods]
impl EncodedImage {
    /// From 3 bytes per pixel, row by row.
    #[staticmethod]
    fn from_rgb(py: Python<'_>, width: u32, height: u32, pixels: &[u8]) -> PyResult<Self> {
        let image = Image::from_rgb(width, height, pixels.to_vec());
        Ok(EncodedImage { image: image.map_err(|why| error::image(py, why))? })
    }

    /// In pixels.
    #[getter]
    fn width(&self) -> u32 {
        self.image.size().0
    }

    /// In pixels.
    #[getter]
    fn height(&self) -> u32 {
        self.image.size().1
    }

    /// Width and height.
    #[getter]
    fn size(&self) -> (u32, u32) {
        self.image.size()
    }

    /// The picture as a data URI, for clients of servers; PNG, so that nothing is lost.
    #[getter]
    fn image_url(&self, py: Python<'_>) -> PyResult<String> {
        let (width, height) = self.image.size();
        let uri = py.detach(|| {
            let mut png = Vec::new();
            let pixels = self.image.pixels();
            PngEncoder::new(&mut png).write_image(pixels, width, height, ColorType::Rgb8.into())?;
            Ok(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png)))
        });
        uri.map_err(|why: image::ImageError| error::image(py, why))
    }

    fn __repr__(&self) -> String {
        let (width, height) = self.image.size();
        format!("<photon.EncodedImage {width}x{height}>")
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let image = &slf.get().image;
        let (width, height) = image.size();
        let arguments = (width, height, PyBytes::new(py, image.pixels()));
        (slf.get_type().getattr("from_rgb")?, arguments).into_pyobject(py)
    }
}

/// Nothing, a picture, or a list of them.
pub(crate) fn sources(value: &Bound<'_, PyAny>) -> PyResult<Vec<ImageSource>> {
    if value.is_none() {
        return Ok(Vec::new());
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        return value.try_iter()?.map(|one| source(&one?)).collect();
    }
    Ok(vec![source(value)?])
}

/// A picture in whatever form.
pub(crate) fn source(value: &Bound<'_, PyAny>) -> PyResult<ImageSource> {
    if let Ok(encoded) = value.cast::<EncodedImage>() {
        return Ok(encoded.get().image.clone().into());
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(ImageSource::Encoded(bytes.as_bytes().to_vec()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return text_source(value.py(), text.to_str()?);
    }
    if value.hasattr("__fspath__")? {
        return Ok(value.extract::<PathBuf>()?.into());
    }
    if value.hasattr("mode")? && value.hasattr("convert")? && value.hasattr("tobytes")? {
        return Ok(pil(value)?.into());
    }
    if let Ok(view) = PyMemoryView::from(value) {
        return array(&view);
    }
    if value.hasattr("__array__")? {
        return array(&PyMemoryView::from(&value.call_method0("__array__")?)?);
    }
    if value.hasattr("read")? {
        let bytes = value.call_method0("read")?;
        if let Ok(bytes) = bytes.cast::<PyBytes>() {
            return Ok(ImageSource::Encoded(bytes.as_bytes().to_vec()));
        }
    }
    // What other clients of Moondream make of a picture.
    if let Ok(uri) = value.getattr("image_url")
        && let Ok(uri) = uri.cast::<PyString>()
    {
        return data(value.py(), uri.to_str()?);
    }
    let kind = value.get_type().name()?;
    Err(error::image_type(
        value.py(),
        format!(
            "{kind} is no picture: give a path, the bytes of a file, a PIL image or an array of bytes \
             [height, width, 3]"
        ),
    ))
}

/// A path, or a data URI.
fn text_source(py: Python<'_>, text: &str) -> PyResult<ImageSource> {
    if text.starts_with("data:") {
        return data(py, text);
    }
    if text.starts_with("https://") || text.starts_with("http://") {
        let message =
            "Photon opens no connections: download the picture and give its bytes or path";
        return Err(error::image(py, message));
    }
    Ok(PathBuf::from(text).into())
}

/// A data URI, or base64 alone.
fn data(py: Python<'_>, text: &str) -> PyResult<ImageSource> {
    let bytes = wire::decode(text).map_err(|why| error::image(py, why))?;
    Ok(ImageSource::Encoded(bytes))
}

/// An image of PIL: its pixels as they are. PIL does not turn a picture by its EXIF data, so neither is it here.
fn pil(value: &Bound<'_, PyAny>) -> PyResult<Image> {
    let py = value.py();
    let rgb = match value.getattr("mode")?.extract::<String>()?.as_str() {
        "RGB" => value.clone(),
        _ => value.call_method1("convert", ("RGB",))?,
    };
    let (width, height) = rgb.getattr("size")?.extract()?;
    let pixels = rgb.call_method0("tobytes")?;
    let pixels = pixels.cast::<PyBytes>()?.as_bytes().to_vec();
    Image::from_rgb(width, height, pixels).map_err(|why| error::image(py, why))
}

/// The bytes of a file, or pixels: `[height, width]`, `[height, width, 1]`, `3` or `4`, of which alpha is dropped, as
/// with files.
fn array(view: &Bound<'_, PyMemoryView>) -> PyResult<ImageSource> {
    let py = view.py();
    let (format, shape): (String, Vec<usize>) =
        (view.getattr("format")?.extract()?, view.getattr("shape")?.extract()?);
    let bytes = view.call_method0("tobytes")?;
    let bytes = bytes.cast::<PyBytes>()?.as_bytes();
    let (height, width, channels) = match (format.as_str(), shape.as_slice()) {
        ("B" | "b" | "c", [_]) => return Ok(ImageSource::Encoded(bytes.to_vec())),
        ("B", &[height, width]) => (height, width, 1),
        ("B", &[height, width, channels @ (1 | 3 | 4)]) => (height, width, channels),
        _ => {
            return Err(error::image_type(
                py,
                format!(
                    "an array of format {format:?} and shape {shape:?} is no picture: it must be uint8 and \
                     [height, width], [height, width, 1], [height, width, 3] or [height, width, 4]"
                ),
            ));
        }
    };
    let pixels = py.detach(|| match channels {
        1 => bytes.iter().flat_map(|&gray| [gray; 3]).collect(),
        4 => bytes.chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect(),
        _ => bytes.to_vec(),
    });
    // Larger ones are refused for their size.
    let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let image = Image::from_rgb(side(width), side(height), pixels);
    Ok(image.map_err(|why| error::image(py, why))?.into())
}

/// The key by which a request is routed where several engines share the work: that of its first picture's file, or
/// without pictures of what the user says first. Servers compute the same.
#[pyfunction]
#[pyo3(signature = (image=None, text=""))]
pub(crate) fn route_key(
    py: Python<'_>,
    image: Option<&Bound<'_, PyAny>>,
    text: &str,
) -> PyResult<String> {
    match image.map(source).transpose()? {
        None => Ok(photon::route_key(text.trim().as_bytes())),
        Some(ImageSource::Encoded(bytes)) => Ok(py.detach(|| photon::route_key(&bytes))),
        Some(ImageSource::File(path)) => {
            let bytes = py.detach(|| std::fs::read(&path).map(|bytes| photon::route_key(&bytes)));
            bytes.map_err(|source| error::open(py, OpenError::Io { path, source }))
        }
        Some(ImageSource::Decoded(_)) => {
            Err(error::image_type(py, "pixels have no key: give the picture's file or its bytes"))
        }
    }
}
