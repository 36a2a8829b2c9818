//! Checks the public keys of many peers in a fraction of the time that it takes one by one.
//!
//! Nearly all of that time would go into the question whether a point has torsion, a multiplication by
//! the order of the group. A sum of points has none if they have none, and if one of them has, then half
//! of all sums of some of them have. So 40 random sums are asked about instead of each point.

use ed25519_dalek::VerifyingKey;
use sha2::{Digest as _, Sha256};

use super::secret::KeyError;

/// The fewest keys for which the sums are faster than one check after the other.
const FEW: usize = 128;

/// Each bit of a point's weight says whether it is in one of the sums.
type Weight = [u8; 5];

/// Whether this is a public key that only its owner can use, for signatures and X25519: in its canonical form
/// (RFC 8032, 5.1.3), so that no other bytes stand for the same point, not of small order, and without
/// torsion.
///
/// # Errors
/// Which of these it is not.
pub fn check_public_key(public: &[u8; 32]) -> Result<(), KeyError> {
    without_torsion(&point(public)?)
}

/// Whether these bytes can be a public key. A private one makes a point in the subgroup of prime
/// order, and nothing else (RFC 8032, 5.1.5: a multiple of the base point); of random bytes, as a
/// private key has, one in sixteen is such a point by chance.
pub fn is_public_key(bytes: &[u8; 32]) -> bool {
    check_public_key(bytes).is_ok()
}

/// The same of each of these. A key with torsion passes with a probability of 2⁻⁴⁰ where there are many.
///
/// # Errors
/// For each key, in their order.
pub fn check_public_keys(keys: &[[u8; 32]]) -> Vec<Result<(), KeyError>> {
    let points: Vec<_> = keys.iter().map(point).collect();
    let good: Vec<_> = points.iter().filter_map(|point| point.as_ref().ok()).collect();
    let proven = good.len() >= FEW && has_no_torsion(&good);
    let check = |point: Result<VerifyingKey, KeyError>| match point {
        Ok(_) if proven => Ok(()),
        Ok(key) => without_torsion(&key),
        Err(error) => Err(error),
    };
    points.into_iter().map(check).collect()
}

/// The point of a key, which may have torsion.
fn point(bytes: &[u8; 32]) -> Result<VerifyingKey, KeyError> {
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPoint)?;
    match (is_canonical(bytes), key.is_weak()) {
        (false, _) => Err(KeyError::NotCanonical),
        (true, true) => Err(KeyError::Weak),
        (true, false) => Ok(key),
    }
}

fn without_torsion(key: &VerifyingKey) -> Result<(), KeyError> {
    match key.to_edwards().is_torsion_free() {
        true => Ok(()),
        false => Err(KeyError::Torsion),
    }
}

/// Whether the coordinate is less than 2²⁵⁵ - 19: otherwise the same point has another form, too.
fn is_canonical(bytes: &[u8; 32]) -> bool {
    let [low, middle @ .., high] = bytes;
    *low < 0xed || high & 0x7f != 0x7f || middle.iter().any(|byte| *byte != 0xff)
}

/// Whether no random sum of these has torsion. Choosing a key does not choose the weights: they
/// come from all keys.
fn has_no_torsion(keys: &[&VerifyingKey]) -> bool {
    let seed = keys.iter().fold(Sha256::new(), |hash, key| hash.chain_update(key.as_bytes()));
    let seed: [u8; 32] = seed.finalize().into();
    let weight = |number: u64| -> Weight {
        let hash = Sha256::new().chain_update(seed).chain_update(number.to_be_bytes());
        let [a, b, c, d, e, ..]: [u8; 32] = hash.finalize().into();
        [a, b, c, d, e]
    };
    let points: Vec<_> = (0..).map(weight).zip(keys.iter().map(|key| key.to_edwards())).collect();
    let Some((_, any)) = points.first() else { return true };
    let zero = zero_of(any);
    (0..size_of::<Weight>()).all(|byte| {
        // Points whose weights have the same byte are in the same sums of these eight.
        let mut alike = vec![zero; 256];
        for (weight, point) in &points {
            alike[usize::from(weight[byte])] += point;
        }
        (0..8).all(|bit| {
            let chosen = alike.iter().enumerate().filter(|(value, _)| value >> bit & 1 == 1);
            chosen.fold(zero, |sum, (_, point)| sum + point).is_torsion_free()
        })
    })
}

/// The neutral element of the group that a point is from.
fn zero_of<T: Default>(_: &T) -> T {
    T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{SharedSecret, Signer};

    fn keys(count: u32) -> Vec<[u8; 32]> {
        let seed = |number: u32| {
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&number.to_be_bytes());
            seed
        };
        let public = |number| Signer::new(&seed(number), SharedSecret::new(Vec::new())).public();
        (0..count).map(public).collect()
    }

    /// A point of order 8.
    fn torsion() -> VerifyingKey {
        let order8 = [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ];
        VerifyingKey::from_bytes(&order8).unwrap()
    }

    /// The keys, of which one is a point with torsion of this order.
    fn with_torsion(mut keys: Vec<[u8; 32]>, at: usize, order: u32) -> Vec<[u8; 32]> {
        let mut point = VerifyingKey::from_bytes(&keys[at]).unwrap().to_edwards();
        for _ in 0..8 / order {
            point += torsion().to_edwards();
        }
        keys[at] = point.compress().to_bytes();
        keys
    }

    #[test]
    fn good_keys_are_good_however_many() {
        for count in [0, 1, 127, 128, 300] {
            let checked = check_public_keys(&keys(count));
            assert_eq!(checked.len(), usize::try_from(count).unwrap());
            assert!(checked.iter().all(Result::is_ok));
        }
    }

    #[test]
    fn a_key_with_torsion_is_found_among_few_and_many() {
        for (count, at, order) in
            [(1, 0, 8), (300, 0, 2), (300, 299, 4), (300, 150, 8), (128, 5, 2)]
        {
            let checked = check_public_keys(&with_torsion(keys(count), at, order));
            let bad: Vec<_> = (0..checked.len()).filter(|at| checked[*at].is_err()).collect();
            assert_eq!(bad, [at], "{count} {order}");
        }
        let good: Vec<_> = keys(128).iter().map(|key| point(key).unwrap()).collect();
        assert!(has_no_torsion(&good.iter().collect::<Vec<_>>()));
        // Two whose torsion would cancel out.
        let two = with_torsion(with_torsion(keys(300), 7, 2), 8, 2);
        assert_eq!(check_public_keys(&two).iter().filter(|key| key.is_err()).count(), 2);
    }

    #[test]
    fn other_mistakes_are_told_apart() {
        let mut bad = keys(200);
        bad[1] = [0; 32]; // of order 4
        bad[2] = [2; 32];
        bad[3] = torsion().to_bytes();
        let p_plus = |more: u8| {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (0xed + more, 0x7f);
            bytes
        };
        let other_form: Vec<_> = (0..19).map(p_plus).collect();
        bad.extend(&other_form);
        let checked = check_public_keys(&bad);
        assert_eq!(checked[1], Err(KeyError::Weak));
        assert_eq!(checked[2], Err(KeyError::NotAPoint));
        assert_eq!(checked[3], Err(KeyError::Weak));
        assert!(checked[200..].iter().all(Result::is_err));
        let is_point =
            |bytes: &&[u8; 32]| VerifyingKey::from_bytes(bytes).is_ok_and(|key| !key.is_weak());
        let points = other_form.iter().filter(is_point).count();
        assert!(points > 3, "some of them are refused for their form alone: {points}");
        assert_eq!(checked.iter().filter(|key| key.is_ok()).count(), 197);
    }
}
