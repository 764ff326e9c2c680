//! Python's values as JSON and back.
use pyo3::{
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple},
};
use serde_json::{Map, Number, Value};

use crate::error;

/// Deepest nesting that is read, as in requests over HTTP.
const MAX_DEPTH: usize = photon_server::fields::MAX_DEPTH;

/// Numbers, texts, lists and dictionaries; numbers and arrays of NumPy, too. `name` is only for the message.
pub(crate) fn from_python(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Value> {
    nested(value, name, 0)
}

fn nested(value: &Bound<'_, PyAny>, name: &str, depth: usize) -> PyResult<Value> {
    let py = value.py();
    let wrong = |why: &str| error::invalid(py, format!("{name} {why}"));
    if depth > MAX_DEPTH {
        return Err(wrong(&format!("is nested deeper than {MAX_DEPTH} levels")));
    }
    if value.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Value::String(text.to_str()?.to_owned()));
    }
    if let Ok(map) = value.cast::<PyMapping>() {
        let mut fields = Map::new();
        for pair in map.items()?.iter() {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair.extract()?;
            let key: String = key.extract().map_err(|_| wrong("has a key that is no text"))?;
            fields.insert(key, nested(&value, name, depth + 1)?);
        }
        return Ok(Value::Object(fields));
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let values = value.try_iter()?.map(|one| nested(&one?, name, depth + 1));
        return values.collect::<PyResult<_>>().map(Value::Array);
    }
    if value.is_instance_of::<PyFloat>() {
        return number(value.extract()?).ok_or_else(|| wrong("is not a finite number"));
    }
    if value.is_instance_of::<PyInt>() || value.hasattr("__index__")? && !value.hasattr("tolist")? {
        let signed = value.extract::<i64>().map(Number::from);
        let whole = signed.or_else(|_| value.extract::<u64>().map(Number::from));
        return whole.map(Value::Number).map_err(|_| wrong("is too large a number"));
    }
    // NumPy's scalars and arrays.
    if value.hasattr("tolist")? {
        return nested(&value.call_method0("tolist")?, name, depth + 1);
    }
    let kind = value.get_type().name()?;
    Err(wrong(&format!("holds something of type {kind}, which no request can carry")))
}

fn number(value: f64) -> Option<Value> {
    Number::from_f64(value).map(Value::Number)
}

/// Dictionaries, lists, texts and numbers.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(whole), ..) => whole.into_pyobject(py)?.into_any(),
            (_, Some(whole), _) => whole.into_pyobject(py)?.into_any(),
            (.., value) => PyFloat::new(py, value.unwrap_or(f64::NAN)).into_any(),
        },
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Array(values) => {
            let list = PyList::empty(py);
            for value in values {
                list.append(to_python(py, value)?)?;
            }
            list.into_any()
        }
        Value::Object(map) => fields(py, map)?.into_any(),
    })
}

/// A dictionary.
pub(crate) fn fields<'py>(
    py: Python<'py>,
    map: &Map<String, Value>,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in map {
        dict.set_item(name, to_python(py, value)?)?;
    }
    Ok(dict)
}
