"""DIMAP metadata as vendors write them, cut down to what is read."""

from collections.abc import Mapping, Sequence

BANDS = ("blue", "green", "red", "nir")
ESUN = {"blue": 1960.0, "green": 1853.0, "red": 1561.0, "nir": 1086.0}


def deimos_2(
    order: Sequence[str] = ("nir", "red", "green", "blue"),
    gain: Mapping[str, float] | None = None,
    bias: Mapping[str, float] | None = None,
    unit: str = "W/m2/sr/um",
    mission: str = "<MISSION>DEIMOS</MISSION><MISSION_INDEX>2</MISSION_INDEX>",
    time: str = "<START_TIME>2017-04-15T08:41:07</START_TIME>",
    image: str = "",
) -> str:
    """DIMAP v1 as with Deimos-2: gains that multiply, bands from the infrared to the blue, ESUN in each."""
    gain, bias = gain or dict.fromkeys(BANDS, 0.1), bias or dict.fromkeys(BANDS, 0.0)
    bands = "".join(
        f"<Spectral_Band_Info><BAND_INDEX>{number}</BAND_INDEX>"
        f"<BAND_DESCRIPTION>{'NIR' if colour == 'nir' else colour.title()}</BAND_DESCRIPTION>"
        f"<PHYSICAL_GAIN>{gain[colour]}</PHYSICAL_GAIN><PHYSICAL_BIAS>{bias[colour]}</PHYSICAL_BIAS>"
        f"<PHYSICAL_UNIT>{unit}</PHYSICAL_UNIT><ESUN>{ESUN[colour]}</ESUN></Spectral_Band_Info>"
        for number, colour in enumerate(order, start=1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Dimap_Document><Metadata_Id><METADATA_FORMAT version="1.1">DIMAP'
        "</METADATA_FORMAT></Metadata_Id><Dataset_Sources><Source_Information><Scene_Source>"
        f"{mission}{time}<VIEWING_ANGLE>3.5</VIEWING_ANGLE><INCIDENCE_ANGLE>4.1</INCIDENCE_ANGLE>"
        "<SUN_AZIMUTH>41.5</SUN_AZIMUTH><SUN_ELEVATION>52.25</SUN_ELEVATION>"
        "<EARTH_SUN_DISTANCE>1.0034</EARTH_SUN_DISTANCE></Scene_Source></Source_Information></Dataset_Sources>"
        f"<Data_Access><Data_File>{f'<DATA_FILE_PATH href={chr(34)}{image}{chr(34)}/>' if image else ''}</Data_File>"
        f"</Data_Access><Image_Interpretation>{bands}</Image_Interpretation></Dimap_Document>"
    )


def spot(**changes) -> str:
    """DIMAP v1 of SPOT and those that follow its dictionary: gains that divide."""
    return deimos_2(
        **{
            "order": BANDS,
            "gain": dict.fromkeys(BANDS, 4.0),
            "unit": "equivalent radiance (W.m-2.Sr-1.um-1)",
            "mission": "<MISSION>VISION</MISSION><MISSION_INDEX>1</MISSION_INDEX>",
            "time": "<IMAGING_DATE>2017-04-15</IMAGING_DATE><IMAGING_TIME>08:41:07.5Z</IMAGING_TIME>",
        }
        | changes
    )


def pleiades(
    image: str,
    gain: float = 9.5,
    bias: float = 0.0,
    processing: str = "BASIC",
    order: Sequence[str] = ("B2", "B1", "B0", "B3"),
    nodata: int = 0,
    indices: bool = True,
) -> str:
    """DIMAP v2 of Pleiades: gains that divide, bands by id, angles at three places."""
    names = dict(zip(("B0", "B1", "B2", "B3"), BANDS, strict=True))
    radiance = "".join(
        f"<Band_Radiance><BAND_ID>{band}</BAND_ID><MEASURE_UNIT>W/m2/sr/micrometer</MEASURE_UNIT>"
        f"<GAIN>{gain}</GAIN><BIAS>{bias}</BIAS></Band_Radiance>"
        f"<Band_Solar_Irradiance><BAND_ID>{band}</BAND_ID><VALUE>{ESUN[names[band]]}</VALUE></Band_Solar_Irradiance>"
        for band in names
    )
    index = "".join(
        f"<Raster_Index><BAND_ID>{band}</BAND_ID><BAND_INDEX>{number}</BAND_INDEX></Raster_Index>"
        for number, band in enumerate(order, start=1)
    )
    places = "".join(
        f"<Located_Geometric_Values><LOCATION_TYPE>{place}</LOCATION_TYPE><Acquisition_Angles><INCIDENCE_ANGLE>{8 + n}"
        f"</INCIDENCE_ANGLE></Acquisition_Angles><Solar_Incidences><SUN_AZIMUTH>{150 + n}</SUN_AZIMUTH>"
        f"<SUN_ELEVATION>{55 + n}</SUN_ELEVATION></Solar_Incidences></Located_Geometric_Values>"
        for n, place in enumerate(("Top Center", "Center", "Bottom Center"))
    )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?><Dimap_Document><Metadata_Identification><METADATA_FORMAT'
        ' version="2.0">DIMAP</METADATA_FORMAT></Metadata_Identification><Dataset_Sources><Source_Identification>'
        "<Strip_Source><MISSION>PHR</MISSION><MISSION_INDEX>1A</MISSION_INDEX><IMAGING_DATE>2017-04-15</IMAGING_DATE>"
        "<IMAGING_TIME>10:53:20.2Z</IMAGING_TIME></Strip_Source></Source_Identification></Dataset_Sources>"
        f"<RADIOMETRIC_PROCESSING>{processing}</RADIOMETRIC_PROCESSING>"
        f'<Raster_Data><Data_Access><Data_Files><Data_File><DATA_FILE_PATH href="{image}"/></Data_File></Data_Files>'
        "</Data_Access><Raster_Display><Special_Value><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>"
        f"<SPECIAL_VALUE_COUNT>{nodata}</SPECIAL_VALUE_COUNT></Special_Value>"
        f"{f'<Raster_Index_List>{index}</Raster_Index_List>' if indices else ''}</Raster_Display></Raster_Data>"
        f"<Geometric_Data><Use_Area>{places}</Use_Area></Geometric_Data><Radiometric_Data><Radiometric_Calibration>"
        f"<Instrument_Calibration><Band_Measurement_List>{radiance}</Band_Measurement_List></Instrument_Calibration>"
        "</Radiometric_Calibration></Radiometric_Data></Dimap_Document>"
    )
