//! The same bits from any number of threads, in any folder.

use pipeline_tests::{Run, STAGES, changed, stderr};

fn run_with(n_threads: usize) -> Run {
    let run = Run::of("smoke.yaml");
    for stage in STAGES {
        let output = run.command(stage).env("RAYON_NUM_THREADS", n_threads.to_string()).output().unwrap();
        assert!(output.status.success(), "{stage}: {}", stderr(&output));
    }
    run
}

#[test]
fn one_thread_and_many_make_the_same_artifacts() {
    let one = run_with(1).manifests();
    assert!(one.len() >= 10, "{:?}", one.keys());
    for n_threads in [2, 3] {
        assert_eq!(changed(&one, &run_with(n_threads).manifests()), [""; 0], "{n_threads} threads");
    }
}
