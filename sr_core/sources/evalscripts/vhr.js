//VERSION=3
// A VHR collection of one's own: BANDS in the collection's own units, sharpened by PAN where that is not null:
// band x PAN / mean of the bands. `masks` is 1 where there is data that uint16 can hold.
// BANDS and PAN are defined by sr_core/sources/sentinel_hub.py before this line is reached.
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
  let values = BANDS.map((name) => sample[name]);
  if (PAN !== null) {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    values = values.map((value) => (value * sample[PAN]) / mean);
  }
  values = values.map(Math.round);
  const usable = sample.dataMask === 1 && values.every((value) => value >= 0 && value <= 65535);
  return { bands: usable ? values : values.map(() => 0), masks: [usable ? 1 : 0] };
}
