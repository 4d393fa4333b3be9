//VERSION=3
// Sentinel-2 as it was delivered: digital numbers of BANDS, and the classes of MASKS, pixel by pixel.
// BANDS and MASKS are defined by sr_core/sources/sentinel_hub.py before this line is reached.
function setup() {
  return {
    input: [{ bands: BANDS.concat(MASKS), units: "DN" }],
    output: [
      { id: "bands", bands: BANDS.length, sampleType: "UINT16" },
      { id: "masks", bands: MASKS.length, sampleType: "UINT8" },
    ],
    mosaicking: "SIMPLE",
  };
}

function evaluatePixel(sample) {
  return {
    bands: BANDS.map((name) => sample[name]),
    masks: MASKS.map((name) => sample[name]),
  };
}
