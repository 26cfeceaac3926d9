//! What cubecl-cuda 0.11.3 asks of cubecl-llvm 0.11.3, and nothing behind it: with cubecl's feature `cuda-cpp` kernels are
//! compiled by NVRTC, and this crate is linked but never called. It takes the place of a build script that fetches LLVM.
//! The names are those of the crate it stands in for.

use core::ffi::c_char;
use core::fmt::{Debug, Display, Formatter, Result};

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_server::compiler::{CompilationError, Compiler};
use cubecl_server::kernel::BufferIOAttr;

const STUB: &str = "LLVM is left out of this build; enable cubecl's feature cuda-cpp";

pub mod nvptx {
    pub mod ptx_version {
        /// The version of PTX that a driver takes: none here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(u32);

        impl PtxVersion {
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "ptx{}", self.0)
            }
        }
    }
}

pub mod shared {
    pub mod lowered_features {
        pub enum GpuTarget {
            Nvptx,
        }

        pub fn restrict_features(_: &mut cubecl_core::ir::DeviceProperties, _: GpuTarget) {
            unreachable!("{}", crate::STUB)
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    #[default]
    Cpu,
    Nvptx,
}

#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    pub target: LlvmTarget,
}

#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    pub arch: Option<()>,
    pub sm_arch: Option<SmArch>,
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    pub grid_constants: bool,
    pub cpu_buffer_alignment: Option<u32>,
}

#[derive(Clone, Debug)]
pub struct NvptxModule {
    pub ptx: Vec<c_char>,
    pub entrypoint: String,
    pub ir: String,
    pub shared_memory_size: usize,
    pub io: Vec<BufferIOAttr>,
}

#[derive(Clone)]
pub enum PlironArtifact {
    NvptxCode(NvptxModule),
    Other,
}

impl Debug for PlironArtifact {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(STUB)
    }
}

impl Display for PlironArtifact {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(STUB)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> core::result::Result<PlironArtifact, CompilationError> {
        unreachable!("{STUB}")
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "ll"
    }
}
