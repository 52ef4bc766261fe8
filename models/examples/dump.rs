//! Throwaway.
use candle_core::{DType, Device};
fn main() {
    for path in std::env::args().skip(1) {
        match pipe_models::checkpoint::TensorFile::open(std::path::Path::new(&path), &path)
            .and_then(|file| file.read(&Device::Cpu, |_| true))
        {
            Err(error) => println!("{path}\tERROR {error}"),
            Ok(tensors) => {
                for (name, tensor) in tensors {
                    let values: Vec<f64> =
                        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                    let hash: f64 = values.iter().enumerate().map(|(i, v)| v * ((i % 97) as f64 + 1.0)).sum();
                    println!("{path}\t{name}\t{:?}\t{:?}\t{hash:.6}", tensor.dims(), tensor.dtype());
                }
            }
        }
    }
}
