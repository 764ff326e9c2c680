//! Finding NVIDIA's libraries at run time.
//!
//! Bindings that look for the name of one version would not find the next; so names and folders are listed
//! here, for CUDA 12 and 13, newest first. Nothing is needed to build, and nothing panics where a library
//! is absent.
#![allow(unsafe_code, reason = "opens libraries")]

use std::{
    env,
    path::{Path, PathBuf},
};

use libloading::Library;

/// Names a folder to look in before all others.
pub(crate) const FOLDER_VARIABLE: &str = "PHOTON_CUDA_LIBRARIES";

/// Where installations put libraries that the system's loader may not know.
#[cfg(unix)]
const FOLDERS: &[&str] = &[
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-13/lib64",
    "/usr/local/cuda-12/lib64",
    "/opt/cuda/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
];
#[cfg(not(unix))]
const FOLDERS: &[&str] = &[];

/// The places where a file may lie: as the system's loader finds it, then by folder.
fn candidates(file: &str) -> Vec<PathBuf> {
    let named = env::var_os(FOLDER_VARIABLE).and_then(|folder| std::path::absolute(folder).ok());
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
    let under = |root: PathBuf| {
        let bin = root.join("bin");
        [root.join("lib64"), root.join("lib"), bin.join("x64"), bin]
    };
    let mut paths: Vec<PathBuf> = named.into_iter().map(|folder| folder.join(file)).collect();
    paths.push(file.into());
    paths.extend(toolkits.flat_map(under).map(|folder| folder.join(file)));
    paths.extend(FOLDERS.iter().map(|folder| PathBuf::from(folder).join(file)));
    if cfg!(windows) {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).filter(|folder| folder.is_absolute());
        paths.extend(folders.map(|folder| folder.join(file)));
    }
    paths
}

/// Opens a file: one of NVIDIA's, as all callers name them.
#[cfg(not(windows))]
pub(crate) fn load(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: NVIDIA's libraries have initializers without conditions.
    unsafe { Library::new(path) }
}

/// Opens a file: one of NVIDIA's, as all callers name them. A mere name is looked for beside the program and in the
/// system's folder, not in the current one, where somebody else may have put something; what a file needs lies beside it.
#[cfg(windows)]
pub(crate) fn load(path: &Path) -> Result<Library, libloading::Error> {
    use libloading::os::windows::{
        LOAD_LIBRARY_SEARCH_DEFAULT_DIRS, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR, Library,
    };
    let flags = match path.is_absolute() {
        true => LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | LOAD_LIBRARY_SEARCH_DEFAULT_DIRS,
        false => LOAD_LIBRARY_SEARCH_DEFAULT_DIRS,
    };
    // SAFETY: NVIDIA's libraries have initializers without conditions.
    unsafe { Library::load_with_flags(path, flags) }.map(Into::into)
}

/// Opens the first of `files` that there is.
///
/// # Errors
/// What was looked for.
pub(crate) fn open(files: &[String]) -> Result<Library, String> {
    for file in files {
        for path in candidates(file) {
            if let Ok(library) = load(&path) {
                return Ok(library);
            }
        }
    }
    Err(format!(
        "none of {} was found; install CUDA's libraries, or name their folder in {FOLDER_VARIABLE}",
        files.join(", ")
    ))
}

/// The file names of a library for these versions of CUDA, in this order.
pub(crate) fn names(stem: &str, majors: &[u32]) -> Vec<String> {
    let name = |major: &u32| {
        if cfg!(windows) {
            let cuda = if stem == "nvrtc" { format!("{major}0_0") } else { major.to_string() };
            format!("{stem}64_{cuda}.dll")
        } else {
            format!("lib{stem}.so.{major}")
        }
    };
    majors.iter().map(name).collect()
}

/// Declares a table of functions looked up by name, and how to fill it.
macro_rules! functions {
    ($(#[$doc:meta])* $vis:vis $table:ident { $($name:ident: fn($($arg:ty),* $(,)?) -> $out:ty,)+ }) => {
        $(#[$doc])*
        #[expect(non_snake_case, reason = "the library's own names")]
        $vis struct $table {
            $($vis $name: unsafe extern "C" fn($($arg),*) -> $out,)+
            /// Keeps the functions where they are.
            _library: libloading::Library,
        }

        impl $table {
            fn load(library: libloading::Library) -> Result<Self, String> {
                Ok($table {
                    $($name: {
                        // SAFETY: the signature is the library's own, the same in every version listed.
                        let found = unsafe { library.get(concat!(stringify!($name), "\0")) };
                        let missing = |_| concat!("the library has no ", stringify!($name)).to_owned();
                        *found.map_err(missing)?
                    },)+
                    _library: library,
                })
            }
        }

        impl std::fmt::Debug for $table {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($table))
            }
        }
    };
}
pub(crate) use functions;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_library_is_an_error_that_names_what_was_looked_for() {
        let error = open(&names("photon-has-none", &[13, 12])).unwrap_err();
        assert!(error.contains("photon-has-none"), "{error}");
        assert!(error.contains(FOLDER_VARIABLE), "{error}");
    }
}
