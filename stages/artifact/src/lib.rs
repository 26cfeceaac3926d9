//! What every stage shares: the typed `pipeline.yaml`, the protocol by which a stage reads and publishes artifacts, and
//! the schema of every table on disk. Nothing here knows tensors.

pub mod config;
pub mod digest;
pub mod guarded;
pub mod random;
pub mod stage;
pub mod tables;
pub mod whole_file;
