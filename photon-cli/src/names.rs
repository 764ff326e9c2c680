//! What a user calls models and adapters: `--model MODEL/ID@STEP`, `--adapter ID@STEP`, and lines of a batch alike.
use std::path::{Path, PathBuf};

use photon::{
    Model,
    adapters::{AdapterFolder, AdapterName, ModelName, NameError},
};

use crate::{Failure, args::ModelArgs};

/// Whose fault it is that a name stands for nothing.
fn failure(error: NameError) -> Failure {
    match error {
        NameError::Name(_) => Failure::Usage(error.to_string()),
        error => error.into(),
    }
}

/// The model, and the file of the adapter that everything is answered with.
pub(crate) fn chosen(args: &ModelArgs) -> Result<(Model, Option<PathBuf>), Failure> {
    // A folder may be called like anything.
    let whole = ModelName { base: args.model.clone(), adapter: None };
    let name = if Path::new(&args.model).exists() {
        whole
    } else {
        args.model.parse().map_err(failure)?
    };
    let adapters = args.adapters.clone().map(AdapterFolder::from);
    let adapter = match (&name.adapter, &args.adapter) {
        (Some(_), Some(_)) => {
            let message = "--model names an adapter, and so does --adapter: give one of them";
            return Err(Failure::Usage(message.into()));
        }
        (Some(name), None) => Some(find(name, adapters.as_ref())),
        (None, Some(file)) => Some(adapter(file, adapters.as_ref(), Path::new(""))),
        (None, None) => None,
    };
    Ok((Model::named(&name.base)?, adapter.transpose().map_err(failure)?))
}

/// The file of an adapter given as a file, relative to `folder`, or by its name.
pub(crate) fn adapter(
    given: &Path,
    adapters: Option<&AdapterFolder>,
    folder: &Path,
) -> Result<PathBuf, NameError> {
    let file = folder.join(given);
    match given.to_str().map(str::parse::<AdapterName>) {
        Some(Ok(name)) if adapters.is_some() || !file.exists() => find(&name, adapters),
        _ => Ok(file),
    }
}

/// The file of an adapter by its name.
pub(crate) fn find(
    name: &AdapterName,
    adapters: Option<&AdapterFolder>,
) -> Result<PathBuf, NameError> {
    match adapters {
        Some(adapters) => adapters.find(name),
        None => Err(NameError::NoFolder(name.clone())),
    }
}
