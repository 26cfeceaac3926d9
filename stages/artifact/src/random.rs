//! Random streams, each keyed by what it is for, so that no stream depends on how many numbers another one drew or on
//! which thread ran first.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The stream for one purpose of one stage: `stream(seed, "train/batch-order", shard, step)`.
pub fn stream(seed: u64, purpose: &str, shard: u64, step: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(shard.to_le_bytes());
    hasher.update(step.to_le_bytes());
    hasher.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::stream;

    #[test]
    fn a_stream_depends_on_each_part_of_its_key_and_on_nothing_else() {
        let first = |seed, purpose, shard, step| stream(seed, purpose, shard, step).next_u64();
        let base = first(0, "a", 0, 0);
        assert_eq!(base, first(0, "a", 0, 0));
        for other in [first(1, "a", 0, 0), first(0, "b", 0, 0), first(0, "a", 1, 0), first(0, "a", 0, 1)] {
            assert_ne!(base, other);
        }
    }
}
