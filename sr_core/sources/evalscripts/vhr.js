//VERSION=3
// A VHR collection of one's own as radiance: BANDS times SCALE, sharpened by PAN where that is not null: band x PAN /
// mean of the bands. `masks` is 0 without data, 1 with data, 2 where a value is negative or too bright for uint16.
// BANDS, PAN and SCALE are defined by sr_core/sources/sentinel_hub.py before this line is reached.
function setup() {
  return {
    input: [{ bands: BANDS.concat(PAN === null ? [] : [PAN], ["dataMask"]) }],
    output: [
      { id: "bands", bands: BANDS.length, sampleType: "UINT16" },
      { id: "masks", bands: 1, sampleType: "UINT8" },
    ],
    mosaicking: "SIMPLE",
  };
}

function evaluatePixel(sample) {
  const nothing = BANDS.map(() => 0);
  if (sample.dataMask !== 1) return { bands: nothing, masks: [0] };
  let values = BANDS.map((name) => sample[name]);
  if (PAN !== null) {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    // without light in any band there is none to share out
    values = values.map((value) => (mean === 0 ? 0 : (value * sample[PAN]) / mean));
  }
  values = values.map((value) => Math.round(value * SCALE));
  const usable = values.every((value) => value >= 0 && value <= 65535);
  return { bands: usable ? values : nothing, masks: [usable ? 1 : 2] };
}
