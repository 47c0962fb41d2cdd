//! Sums of vectors, to serve their mean.

/// The vectors of one hop: each times its weight, added up, and the weights.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct VectorSum {
    weight: f64,
    sums: Vec<f64>,
}

impl VectorSum {
    pub(super) fn new(dimensions: usize) -> Self {
        VectorSum { weight: 0.0, sums: vec![0.0; dimensions] }
    }

    pub(super) fn add(&mut self, vector: impl Iterator<Item = f32>, weight: f64) {
        self.weight += weight;
        self.sums.iter_mut().zip(vector).for_each(|(sum, x)| *sum += f64::from(x) * weight);
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.sums.capacity() * size_of::<f64>()
    }

    pub(super) fn is_sound(&self, dimensions: usize) -> bool {
        self.sums.len() == dimensions
    }
}

/// The mean of all; `None`: there is none, or the weights add up to nothing.
pub(super) fn mean<'a>(hops: impl Iterator<Item = &'a VectorSum>, dimensions: usize) -> Option<Vec<f32>> {
    let mut all = VectorSum::new(dimensions);
    for hop in hops {
        all.weight += hop.weight;
        all.sums.iter_mut().zip(&hop.sums).for_each(|(sum, x)| *sum += x);
    }
    (all.weight > 0.0).then(|| {
        let finite = |x: f64| if x.is_nan() { 0.0 } else { (x as f32).clamp(f32::MIN, f32::MAX) };
        all.sums.iter().map(|sum| finite(sum / all.weight)).collect()
    })
}
