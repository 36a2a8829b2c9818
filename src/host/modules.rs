//! Kernel modules: loads those that are missing, and names those that cannot be loaded.
//!
//! The kernel loads most of them itself when they are first asked for; `modprobe` is run only for
//! those that are not there after that.

use std::io;
use std::path::Path;

use super::program::{self, ProgramError};
use super::release::release;

/// A module that is not loaded and cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error(
        "kernel module {module} is not loaded, and only root may load it: \
         run `modprobe {module}` as root, or list it in /etc/modules-load.d/ipipou.conf"
    )]
    NotPermitted { module: &'static str },
    #[error(
        "this kernel ({release}) has no module {module}: install the full kernel package \
         (linux-image-amd64 on Debian, linux-modules-extra-{release} on Ubuntu)"
    )]
    NoSuchModule { module: &'static str, release: String },
    #[error(
        "kernel module {module} is not loaded and `modprobe` cannot be run ({error}): \
         install the package kmod"
    )]
    NoModprobe { module: &'static str, error: io::Error },
    #[error("kernel module {module} is not loaded: {error}")]
    Hung { module: &'static str, error: ProgramError },
}

/// Makes sure that all of `modules` are loaded or built in.
///
/// # Errors
/// Names the first that cannot be loaded.
pub fn require_modules(modules: &[&'static str]) -> Result<(), ModuleError> {
    modules.iter().filter(|module| !is_present(module)).try_for_each(|module| load(module))
}

fn is_present(module: &str) -> bool {
    // Built-in modules have a directory too, when they have a parameter or a version.
    Path::new("/sys/module").join(module).exists() || is_built_in(module)
}

fn is_built_in(module: &str) -> bool {
    let list = format!("/lib/modules/{}/modules.builtin", release());
    let file = format!("/{module}.ko");
    std::fs::read_to_string(list).is_ok_and(|text| text.lines().any(|line| line.ends_with(&file)))
}

fn load(module: &'static str) -> Result<(), ModuleError> {
    let output =
        program::run("modprobe", &["--quiet", "--", module], &[]).map_err(|error| match error {
            ProgramError::NotRun(error) => ModuleError::NoModprobe { module, error },
            ProgramError::Hung { .. } => ModuleError::Hung { module, error },
        })?;
    if output.status.success() {
        return Ok(());
    }
    // Without the permission, modprobe fails in the same way as without the module.
    let listed = ["modules.dep", "modules.builtin"].iter().any(|index| {
        let path = format!("/lib/modules/{}/{index}", release());
        std::fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("/{module}.ko")))
    });
    Err(if listed {
        ModuleError::NotPermitted { module }
    } else {
        ModuleError::NoSuchModule { module, release: release() }
    })
}
